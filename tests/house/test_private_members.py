"""Private members of Ray, MLflow and Optuna are used in the two patch modules only."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLATFORM = ROOT / "platform" / "siclip_platform"
PATCHES = {PLATFORM / "cluster" / "ray_patches.py", PLATFORM / "tracking" / "mlflow_patches.py"}
PUBLIC = {
    "mlflow",
    "mlflow.entities",
    "mlflow.exceptions",
    "mlflow.models",
    "mlflow.models.signature",
    "mlflow.pyfunc",
    "mlflow.types",
    "mlflow.types.schema",
    "optuna",
    "optuna.distributions",
    "optuna.exceptions",
    "optuna.importance",
    "optuna.pruners",
    "optuna.samplers",
    "optuna.storages",
    "optuna.storages.journal",
    "optuna.study",
    "optuna.trial",
    "ray",
    "ray.data",
    "ray.exceptions",
    "ray.job_submission",
    "ray.train",
    "ray.train.torch",
    "ray.tune",
    "ray.tune.schedulers",
    "ray.tune.search",
    "ray.util.queue",
    "ray.util.scheduling_strategies",
}
"""Modules that the projects document. Add one only if its project's reference has a page for it."""
OTHER_PROJECTS = {
    "_BatchNorm",  # torch: the common base of all BatchNorm classes, which has no public name
    "_convolution_pointwise",  # torch.ops.mkldnn
    "_exit",  # public, of os
    "_replace",  # public, of named tuples
    "_strip_protocol",  # fsspec documents it for implementations
    "_version",  # torch: the counter of a tensor's in-place changes, which has no public name
}


def sources() -> list[Path]:
    return sorted(
        path
        for folder in ("platform", "siclip", "jobs")
        for path in (ROOT / folder).rglob("*.py")
        if path not in PATCHES
    )


def own_names(tree: ast.AST) -> set[str]:
    """Names that a module defines: functions, classes, variables, attributes and fields that are assigned to."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def modules_of(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
        return [node.module]
    return []


def private_uses(path: Path, tree: ast.AST, everywhere: set[str]) -> Iterator[str]:
    """Accesses of a private attribute that neither this file nor, for ``self``, any of our classes defines."""
    here = own_names(tree) | OTHER_PROJECTS
    for node in ast.walk(tree):
        where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            ours = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            if node.attr not in (here | everywhere if ours else here):
                yield f"{where} {ast.unparse(node)}"
        for module in modules_of(node):
            project = module.split(".")[0]
            if project in ("ray", "mlflow", "optuna") and module not in PUBLIC:
                yield f"{where} imports {module}"
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("ray", "mlflow", "optuna"):
            yield from (f"{where} imports {alias.name}" for alias in node.names if is_private(alias.name))


def found_in(code: str, everywhere: set[str]) -> list[str]:
    return list(private_uses(ROOT / "example.py", ast.parse(code), everywhere))


@pytest.mark.parametrize(
    "code",
    [
        "from ray._private import worker",
        "from ray.tune.execution import class_cache",
        "from ray.tune import _hidden",
        "import mlflow.utils.mlflow_tags",
        "study._storage",
        "class S(Base):\n    def f(self):\n        return self._ot_study",
    ],
)
def test_a_private_member_is_found(code: str) -> None:
    assert found_in(code, {"_ours"})


def test_our_own_private_members_are_not() -> None:
    assert not found_in(
        "class S:\n    def f(self):\n        self._x = self._ours\n        return other._x", {"_ours"}
    )


def test_private_members_of_other_projects_are_used_in_the_patch_modules_only() -> None:
    trees = {path: ast.parse(path.read_text()) for path in sources()}
    everywhere = set().union(*map(own_names, trees.values()))
    assert [use for path, tree in trees.items() for use in private_uses(path, tree, everywhere)] == []


def test_private_modules_are_imported_by_the_patch_modules() -> None:
    """Otherwise the patch modules could be removed."""
    for path, project in zip(sorted(PATCHES), ("ray", "mlflow"), strict=True):
        modules = {module for node in ast.walk(ast.parse(path.read_text())) for module in modules_of(node)}
        assert {module for module in modules if module.startswith(project)} - PUBLIC
