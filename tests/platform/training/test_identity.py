"""The code's version covers every module that a training imports, and no room that it does not use."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import siclip
import siclip_platform
from siclip.checkpoints.formats import load_model, save_checkpoint
from siclip_platform.training import identity
from siclip_platform.training.identity import code_files, code_version
from tests.support import study_parts as parts

ROOTS = {"siclip": Path(siclip.__file__).parent, "siclip_platform": Path(str(siclip_platform.__file__)).parent}
ENTRIES = (
    "siclip_platform.training.in_process",
    "siclip_platform.search.trial.trial",
    "siclip_platform.search.trial.ray_run",
)
TRAIN = """
import json, sys
from siclip_platform.recipes.digits import digits_student
from siclip_platform.search.trial import ray_run, trial
from siclip_platform.training import ray_train
from siclip_platform.training.in_process import run_recipe

class Nowhere:
    def log(self, step, metrics): ...
    def milestone(self, step, metrics, save): ...

small = {"training.batch_size": 8, "evaluation.validation_samples": 8, "model.block_regression_steps": 1}
recipe = digits_student(sys.argv[1], sys.argv[2], steps=2).updated(small)
run_recipe(recipe, Nowhere())
run_recipe(recipe.updated({"data.trunk_cache": sys.argv[3], "model.block_regression_steps": 0}), Nowhere())
print(json.dumps([name for name in sys.modules if name.partition(".")[0] in ("siclip", "siclip_platform")]))
"""


def file_of(module: str) -> str | None:
    """The module's name in `code_files`; None if it is no module."""
    root, *inner = module.split(".")
    path = ROOTS[root].joinpath(*inner)
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return f"{root}/{file.relative_to(ROOTS[root]).as_posix()}" if file.is_file() else None


def imported_by(module: str) -> Iterator[str]:
    """Modules that the file of a module names in an import statement, at any depth, other than for type checks."""
    name = file_of(module)
    assert name is not None
    root, _, inner = name.partition("/")
    tree = ast.parse((ROOTS[root] / inner).read_text())
    checks = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    skipped = {id(inside) for check in checks for inside in ast.walk(check)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def import_closure(entries: tuple[str, ...]) -> set[str]:
    """Names in `code_files` of everything that these modules import, directly or not, with the packages around it."""
    found: set[str] = set()
    left = list(entries)
    while left:
        module = left.pop()
        if module.partition(".")[0] not in ROOTS or (name := file_of(module)) is None or name in found:
            continue
        found.add(name)
        left += [*imported_by(module), *([module.rpartition(".")[0]] if "." in module else [])]
    return found


def test_every_module_that_a_training_can_import_is_hashed() -> None:
    closure = import_closure(ENTRIES)
    assert {
        "siclip_platform/training/build.py",
        "siclip_platform/stream/ray_reader.py",
        "siclip/config.py",
    } <= closure
    assert closure - {name for name, _ in code_files()} == set()


@pytest.mark.slow
def test_every_module_that_a_training_imports_is_hashed(digits: Path, nano_teacher: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", TRAIN, str(digits), str(nano_teacher), str(tmp_path / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr
    files = {file_of(module) for module in json.loads(done.stdout.splitlines()[-1])}
    assert {"siclip_platform/training/in_process.py", "siclip/training/loop.py"} <= files
    assert files - {name for name, _ in code_files()} == set()


def test_what_is_no_part_of_a_training_is_not_hashed() -> None:
    rooms = {tuple(name.split("/")[:-1]) for name, _ in code_files()}
    inner = {room[1:] for room in rooms if room[0] == "siclip_platform"}
    others = {
        "cli",
        "studies",
        "simulation",
        "plan",
        "doctor",
        "report",
        "inference",
        "evaluation",
        "tracking",
        "spaces",
    }
    assert others & {room[0] for room in inner if room} == set()
    assert (
        inner & {("search", "policy"), ("search", "ledger"), ("datasets", "importing"), ("datasets", "tools")}
        == set()
    )


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the code, which `code_version` reads in place of the real one."""
    for name, folder in ROOTS.items():
        shutil.copytree(folder, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(siclip, "__file__", str(tmp_path / "siclip" / "__init__.py"))
    monkeypatch.setattr(identity, "__file__", str(tmp_path / "siclip_platform" / "training" / "identity.py"))
    return tmp_path


@pytest.mark.parametrize(
    "file",
    [
        "siclip/training/step.py",
        "siclip_platform/__init__.py",
        "siclip_platform/training/budget.py",
        "siclip_platform/cluster/connect.py",
        "siclip_platform/datasets/derived/embeddings/teacher.py",
        "siclip_platform/search/trial/seed_run.py",
    ],
)
def test_a_changed_module_changes_the_version(copied: Path, file: str) -> None:
    before = code_version.__wrapped__()
    with (copied / file).open("a") as module:
        module.write("\nADDED = 1\n")
    assert code_version.__wrapped__() != before


def test_changed_code_elsewhere_and_changed_comments_leave_the_version(copied: Path) -> None:
    before = code_version.__wrapped__()
    for file, text in (
        ("siclip_platform/report/page.py", "\nADDED = 1\n"),
        ("siclip_platform/cli/tune.py", "\nADDED = 1\n"),
        ("siclip/training/step.py", "\n# a comment\n"),
    ):
        with (copied / file).open("a") as module:
            module.write(text)
    assert code_version.__wrapped__() == before


def test_the_version_number_is_part_of_the_version(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = code_version.__wrapped__()
    monkeypatch.setattr(identity, "VERSION", identity.VERSION + 1)
    assert code_version.__wrapped__() != before


def test_identity_changes_with_the_result_and_with_nothing_else(
    tmp_path: Path, digits: Path, nano_teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = parts.base_recipe(digits).updated({"teacher": str(nano_teacher)})
    whole = identity.identity(recipe)
    moved = tmp_path / "elsewhere"
    shutil.copytree(digits, moved)
    shutil.copyfile(nano_teacher, tmp_path / "other-name.pt")
    same = {"data.path": str(moved), "teacher": str(tmp_path / "other-name.pt"), "training.checkpoint_every": 3}
    assert identity.identity(recipe.updated(same)) == whole

    torch.manual_seed(0)
    model = load_model(nano_teacher)
    with torch.no_grad():
        next(model.parameters()).add_(1e-3)
    save_checkpoint(tmp_path / "changed.pt", model)
    others = [{"training.seed": 1}, {"training.weight_decay": 0.2}, {"teacher": str(tmp_path / "changed.pt")}]
    found = {identity.identity(recipe.updated(values)) for values in others}
    monkeypatch.setattr(identity, "code_version", lambda: "other code")
    found.add(identity.identity(recipe))
    assert len(found | {whole}) == 5


def test_comments_docstrings_and_layout_leave_the_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(text: str) -> str:
        (tmp_path / "m.py").write_text(text)
        monkeypatch.setattr(identity, "code_files", lambda: iter([("m", tmp_path / "m.py")]))
        return code_version.__wrapped__()

    assert code_version() == code_version.__wrapped__()
    first = version('"""Doc."""\n\n\ndef f(x):\n    """Doc."""\n    return x + 1\n')
    assert version("# other\n\ndef f(x):\n    # note\n    return (x +\n            1)\n") == first
    assert version("def f(x):\n    return x + 2\n") != first
