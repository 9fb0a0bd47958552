"""The parts of a study that need no Ray: journal, identity, checkpoints on disk, what fits."""

from __future__ import annotations

import math
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from siclip.checkpoints.formats import load_model, save_checkpoint
from siclip.errors import UserError
from siclip_platform.cluster.resources import GIB, Machine, lay_out
from siclip_platform.search.ledger.journal import Journal
from siclip_platform.search.ledger.retention import newest_checkpoint, sweep
from siclip_platform.search.trial.seed_run import Lane, Milestone, OutOfMemory
from siclip_platform.training import identity as identities
from siclip_platform.training.identity import code_version, identity
from siclip_platform.training.memory import is_out_of_memory
from tests.support import study_parts as parts


def write(journal: Journal) -> None:
    journal.suggested("trial-000", {"a": 1.5})
    journal.started("trial-000", "t0")
    journal.result("trial-000", 2, {"v": math.nan}, {"0": {"v": 0.5}})
    journal.ended("trial-000", "pruned", 2, 1.25, "why")
    journal.told("trial-000")
    journal.suggested("trial-001", {"a": 2})


def test_a_journal_cut_at_any_byte_is_read_up_to_its_last_whole_line(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "whole")
    write(journal)
    journal.close()
    data = journal.path.read_bytes()
    for size in range(len(data) + 1):
        folder = tmp_path / str(size)
        folder.mkdir()
        (folder / "journal.jsonl").write_bytes(data[:size])
        again = Journal(folder)
        assert (folder / "journal.jsonl").read_bytes() == data[: data[:size].rfind(b"\n") + 1]
        again.suggested("trial-009", {})
        again.close()
        assert list(Journal(folder).entries)[-1] == "trial-009"
    entry = Journal(tmp_path / "whole").entries["trial-000"]
    assert (entry.state, entry.steps, entry.seconds, entry.reason, entry.told) == ("pruned", 2, 1.25, "why", True)
    assert entry.attempts == ["t0"] and math.isnan(entry.last["v"])
    assert [e.name for e in Journal(tmp_path / "whole").in_flight()] == ["trial-001"]


def test_a_broken_line_in_the_middle_is_refused_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_text('{"event": "suggested", "trial": "trial-000", "values": {}}\nxx\n{}\n')
    with pytest.raises(UserError, match=r"journal\.jsonl:2"):
        Journal(tmp_path)


def test_identity_follows_what_changes_a_result_and_nothing_else(
    tmp_path: Path, digits: Path, nano_teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = parts.base_recipe(digits).updated({"teacher": str(nano_teacher)})
    whole = identity(recipe)
    moved = tmp_path / "elsewhere"
    shutil.copytree(digits, moved)
    shutil.copyfile(nano_teacher, tmp_path / "other-name.pt")
    same = {"data.path": str(moved), "teacher": str(tmp_path / "other-name.pt"), "training.checkpoint_every": 3}
    assert identity(recipe.updated(same)) == whole

    torch.manual_seed(0)
    model = load_model(nano_teacher)
    with torch.no_grad():
        next(model.parameters()).add_(1e-3)
    save_checkpoint(tmp_path / "changed.pt", model)
    others = [{"training.seed": 1}, {"training.weight_decay": 0.2}, {"teacher": str(tmp_path / "changed.pt")}]
    found = {identity(recipe.updated(values)) for values in others}
    monkeypatch.setattr(identities, "code_version", lambda: "other code")
    found.add(identity(recipe))
    assert len(found | {whole}) == 5


def test_the_codes_version_is_free_of_comments_docstrings_and_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(text: str) -> str:
        (tmp_path / "m.py").write_text(text)
        monkeypatch.setattr(identities, "code_files", lambda: iter([("m", tmp_path / "m.py")]))
        return code_version.__wrapped__()

    assert code_version() == code_version.__wrapped__()
    first = version('"""Doc."""\n\n\ndef f(x):\n    """Doc."""\n    return x + 1\n')
    assert version("# other\n\ndef f(x):\n    # note\n    return (x +\n            1)\n") == first
    assert version("def f(x):\n    return x + 2\n") != first
    monkeypatch.undo()
    names = [name for name, _ in identities.code_files()]
    assert {
        "siclip/training/loop.py",
        "siclip_platform/training/build.py",
        "siclip_platform/recipes/recipe.py",
    } <= set(names)
    assert not any("siclip_platform/report" in name for name in names)


def checkpoints(tmp_path: Path, digits: Path, **plan: Any) -> tuple[Any, Journal]:
    """Completed trials with values 1 to 5, two pruned, one failed, one running; each with 100 bytes on disk."""
    journal = Journal(tmp_path)
    states = ["completed"] * 5 + ["pruned", "pruned", "failed", None]
    for number, state in enumerate(states):
        name = f"trial-{number:03d}"
        journal.suggested(name, {"training.weight_decay": 0.1})
        journal.started(name, f"tune{number}")
        metrics = {parts.METRIC: float(number + 1)}
        journal.result(name, 8, metrics, {"0": metrics})
        if state:
            journal.ended(name, state, 8, 1.0)
        folder = tmp_path / "checkpoints" / f"tune{number}"
        folder.mkdir(parents=True)
        (folder / "seed-0.step-8.pt").write_bytes(b"x" * 100)
    return parts.plan(tmp_path, digits, [], trials=9, **plan), journal


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({}, [0, 1, 2, 3, 4, 8]),
        ({"disk_budget": 900}, [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        ({"disk_budget": 700}, [0, 1, 2, 3, 4, 6, 8]),
        ({"disk_budget": 450}, [2, 3, 4, 8]),
        ({"disk_budget": 1}, [2, 3, 4, 8]),
        ({"disk_budget": 1, "keep_checkpoints": 1}, [4, 8]),
    ],
)
def test_the_disk_keeps_the_best_and_the_running(
    tmp_path: Path, digits: Path, options: dict[str, int], left: list[int]
) -> None:
    plan, journal = checkpoints(tmp_path, digits, **options)
    sweep(plan, journal)
    there = sorted(int(path.parent.name[4:]) for path in (tmp_path / "checkpoints").rglob("*.pt"))
    assert there == left


def test_only_what_trials_keep_under_ray_train_counts_and_that_of_a_running_one_stays(
    tmp_path: Path, digits: Path
) -> None:
    plan, journal = checkpoints(tmp_path, digits, backend="train", disk_budget=900)  # trial-008 runs
    journal.suggested("trial-009", {"training.weight_decay": 0.2})
    journal.ended("trial-009", "pruned", 2, 1.0)
    shared, own = (plan.recipe({"training.weight_decay": decay}, 0).hash for decay in (0.1, 0.2))
    for name, size in ((shared, 50), (own, 100), ("best", 5000), ("confirm-trial-000-best-7", 5000)):
        path = tmp_path / "train" / name / "checkpoint_000000" / "checkpoint.pt"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x" * size)
    assert sweep(plan, journal) == ["trial-007", "trial-009"]  # 1050 bytes, 950, 850
    left = {path.name for path in (tmp_path / "train").iterdir()}
    assert left == {shared, "best", "confirm-trial-000-best-7"}
    journal.close()


def test_what_is_still_needed_stays(tmp_path: Path, digits: Path) -> None:
    plan, journal = checkpoints(tmp_path, digits)
    assert sweep(plan, journal, {"trial-007"}) == ["trial-005", "trial-006"]
    assert sweep(plan, journal) == ["trial-007"]
    journal.close()


def test_a_checkpoint_later_than_the_journal_is_passed_over(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.suggested("trial-000", {})
    journal.started("trial-000", "a")
    for step in (4, 10):
        path = tmp_path / "checkpoints" / "a" / f"seed-0.step-{step}.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    entry = journal.entries["trial-000"]
    assert newest_checkpoint(tmp_path, entry, 0).name == "seed-0.step-10.pt"
    assert newest_checkpoint(tmp_path, entry, 0, until=9).name == "seed-0.step-4.pt"
    assert newest_checkpoint(tmp_path, entry, 0, until=3) is None
    assert newest_checkpoint(tmp_path, entry, 1) is None


def lane(tmp_path: Path, digits: Path, decay: float, **options: Any) -> Lane:
    recipe = parts.base_recipe(digits, **options.pop("training", {})).updated({"training.weight_decay": decay})
    given = {"checkpoint": None, "known": []} | options
    return Lane(recipe, 0, parts.pretend, tmp_path / "place", **given)


def test_a_lane_out_of_memory_starts_again_with_half_the_micro_batch_and_repeats_nothing(
    tmp_path: Path, digits: Path
) -> None:
    short = lane(tmp_path, digits, parts.OOM)
    assert [moment.step for moment in short] == [2, 4, 6, 8]
    assert short.notes == {"oom_retries": "1", "micro_batch_size": "4"}
    assert short.recipe.training.micro_batch_size == 4
    with pytest.raises(OutOfMemory, match="also with half the micro-batch: no room for 12 GiB"):
        list(lane(tmp_path, digits, parts.OOM_ALWAYS))
    with pytest.raises(OutOfMemory, match="of 3 cannot be halved"):
        list(lane(tmp_path, digits, parts.OOM_ALWAYS, training={"batch_size": 3}))


def test_a_lane_stands_still_until_asked_and_its_thread_ends_with_it(tmp_path: Path, digits: Path) -> None:
    threads = threading.active_count()
    open_lane = lane(tmp_path, digits, 0.5, training={"checkpoint_every": 2})
    moments = iter(open_lane)
    assert next(moments).step == 2
    assert threading.active_count() == threads + 1
    open_lane.close()
    assert threading.active_count() == threads
    assert [path.name for path in (tmp_path / "place").iterdir()] == ["seed-0.step-2.pt"]


def test_a_lane_replays_what_is_known_and_then_trains_on(tmp_path: Path, digits: Path) -> None:
    (tmp_path / "c.pt").write_text("4")
    known = [Milestone(step, {parts.METRIC: 0.5, "cost/seconds": 10.0}) for step in (2, 4)]
    goes_on = lane(tmp_path, digits, 0.5, known=known, checkpoint=tmp_path / "c.pt")
    moments = list(goes_on)
    assert [moment.step for moment in moments] == [2, 4, 6, 8]
    assert moments[0] is known[0]
    assert [step for step, metrics in moments[2].history if "train/loss" in metrics] == [5, 6]
    assert moments[2].metrics["cost/seconds"] >= 10.0


@pytest.mark.parametrize(
    ("error", "short"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (MemoryError(), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            True,
        ),
        (RuntimeError("shape mismatch"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(error: Exception, short: bool) -> None:
    assert is_out_of_memory(error) is short


@pytest.mark.parametrize(
    ("machine", "asked", "concurrent", "resources"),
    [
        (Machine(2, 0), {}, 2, {"CPU": 1.0}),
        (Machine(16, 0), {"requested": 3}, 3, {"CPU": 1.0}),
        (Machine(16, 1, 80 * GIB), {}, 1, {"CPU": 1.0, "GPU": 1.0}),
        (Machine(16, 1, 80 * GIB), {"peak_bytes": 10 * GIB}, 6, {"CPU": 1.0, "GPU": 0.1666}),
        (Machine(16, 2, 80 * GIB), {"peak_bytes": 10 * GIB}, 12, {"CPU": 1.0, "GPU": 0.1666}),
        (Machine(16, 1, 80 * GIB), {"peak_bytes": 10 * GIB, "seeds": 3}, 2, {"CPU": 1.0, "GPU": 0.5}),
        (Machine(4, 0), {"backend": "train"}, 1, {"CPU": 0.01}),
    ],
)
def test_what_fits(machine: Machine, asked: dict[str, Any], concurrent: int, resources: dict[str, float]) -> None:
    layout = lay_out(machine, **{"requested": None, "seeds": 1, "worker_cpus": 1.0} | asked)
    assert layout.concurrent == concurrent
    assert layout.resources == pytest.approx(resources)
    gpu = layout.resources.get("GPU", 0)
    assert concurrent * layout.resources["CPU"] <= machine.cpus and concurrent * gpu <= machine.gpus + 1e-9
    held = asked.get("peak_bytes", 0) * asked.get("seeds", 1)
    assert concurrent * held <= machine.gpus * machine.gpu_bytes
    assert f"{concurrent} trials at a time" in layout.reason


@pytest.mark.parametrize(
    ("machine", "asked", "said"),
    [
        (Machine(2, 0), {"requested": 3}, "3 trials at a time do not fit: 2 CPUs, 1 per trial: 2 do"),
        (Machine(2, 0), {"backend": "train"}, "1.51 per trial: 0 do"),
        (Machine(8, 1, 24 * GIB), {"peak_bytes": 20 * GIB, "seeds": 2}, "40.0 GiB of GPU memory"),
        (Machine(8, 1, 24 * GIB), {"peak_bytes": 20 * GIB, "requested": 2}, "20.0 GiB per trial at its peak: 1 do"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_numbers(machine: Machine, asked: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said.replace(".", r"\.")):
        lay_out(machine, **{"requested": None, "seeds": 1, "worker_cpus": 1.0} | asked)
