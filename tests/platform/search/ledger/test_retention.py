"""Which checkpoints of a study stay on disk."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest

from siclip_platform.search.ledger.journal import Journal
from siclip_platform.search.ledger.retention import Retention, newest_checkpoint
from siclip_platform.search.study import StudyPlan
from tests.support import study_parts as parts


def checkpoints(tmp_path: Path, digits: Path, **plan: Any) -> tuple[StudyPlan, Journal]:
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
            journal.ended(name, state, 8, 1.0)  # type: ignore[arg-type]
        folder = tmp_path / "checkpoints" / f"tune{number}"
        folder.mkdir(parents=True)
        (folder / "seed-0.step-8.pt").write_bytes(b"x" * 100)
    return parts.plan(tmp_path, digits, [], trials=9, **plan), journal


KEPT_BY_OPTIONS: list[tuple[dict[str, int], list[int]]] = [
    ({}, [0, 1, 2, 3, 4, 8]),
    ({"disk_budget": 900}, [0, 1, 2, 3, 4, 5, 6, 7, 8]),
    ({"disk_budget": 700}, [0, 1, 2, 3, 4, 6, 8]),
    ({"disk_budget": 450}, [2, 3, 4, 8]),
    ({"disk_budget": 1}, [2, 3, 4, 8]),
    ({"disk_budget": 1, "keep_checkpoints": 1}, [4, 8]),
]


@pytest.mark.parametrize(("options", "kept"), KEPT_BY_OPTIONS)
def test_the_best_and_the_running_keep_their_checkpoints(
    tmp_path: Path, digits: Path, options: dict[str, int], kept: list[int]
) -> None:
    plan, journal = checkpoints(tmp_path, digits, **options)
    Retention(plan, journal).sweep()
    assert sorted(int(path.parent.name[4:]) for path in (tmp_path / "checkpoints").rglob("*.pt")) == kept
    journal.close()


@pytest.mark.parametrize(("options", "kept"), [case for case in KEPT_BY_OPTIONS if case[0].get("disk_budget") != 700])
def test_sweeps_as_trials_end_leave_what_one_sweep_leaves(
    tmp_path: Path, digits: Path, options: dict[str, int], kept: list[int]
) -> None:
    """All orders agree but those of budgets that depend on when the running trials ended."""
    plan, whole = checkpoints(tmp_path, digits, **options)
    states = {name: entry.state for name, entry in whole.entries.items()}
    whole.close()
    lines = (tmp_path / "journal.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "journal.jsonl").write_text("".join(line for line in lines if '"ended"' not in line))
    journal = Journal(tmp_path)
    retention = Retention(plan, journal)
    for name, state in reversed(states.items()):
        if state:
            journal.ended(name, state, 8, 1.0)
            retention.ended(journal.entries[name])
    assert sorted(int(path.parent.name[4:]) for path in (tmp_path / "checkpoints").rglob("*.pt")) == kept
    journal.close()


def test_under_ray_train_only_folders_of_trials_count_and_those_of_running_ones_stay(
    tmp_path: Path, digits: Path
) -> None:
    plan, journal = checkpoints(tmp_path, digits, backend="train", disk_budget=900)  # trial-008 is running
    journal.suggested("trial-009", {"training.weight_decay": 0.2})
    journal.ended("trial-009", "pruned", 2, 1.0)
    shared, own = (plan.recipe({"training.weight_decay": decay}, 0).hash for decay in (0.1, 0.2))
    for name, size in ((shared, 50), (own, 100), ("best", 5000), ("confirm-trial-000-best-7", 5000)):
        path = tmp_path / "train" / name / "checkpoint_000000" / "checkpoint.pt"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x" * size)
    assert Retention(plan, journal).sweep() == ["trial-007", "trial-009"]  # 1050 bytes, 950, 850
    left = {path.name for path in (tmp_path / "train").iterdir()}
    assert left == {shared, "best", "confirm-trial-000-best-7"}
    journal.close()


def test_needed_checkpoints_stay_until_they_are_not(tmp_path: Path, digits: Path) -> None:
    plan, journal = checkpoints(tmp_path, digits)
    retention = Retention(plan, journal)
    assert retention.sweep({"trial-007"}) == ["trial-005", "trial-006"]
    assert retention.sweep() == ["trial-007"]
    journal.close()


def test_a_checkpoint_later_than_the_journal_is_skipped(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.suggested("trial-000", {})
    journal.started("trial-000", "a")
    for step in (4, 10):
        path = tmp_path / "checkpoints" / "a" / f"seed-0.step-{step}.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    entry = journal.entries["trial-000"]
    newest, earlier = newest_checkpoint(tmp_path, entry, 0), newest_checkpoint(tmp_path, entry, 0, until=9)
    assert newest is not None and newest.name == "seed-0.step-10.pt"
    assert earlier is not None and earlier.name == "seed-0.step-4.pt"
    assert newest_checkpoint(tmp_path, entry, 0, until=3) is None
    assert newest_checkpoint(tmp_path, entry, 1) is None
    journal.close()


@pytest.mark.parametrize("budget", [None, 10**6])
def test_only_the_last_attempt_of_a_trial_keeps_checkpoints(tmp_path: Path, budget: int | None) -> None:
    journal = Journal(tmp_path)
    journal.suggested("trial-000", {"training.weight_decay": 0.1})
    written = {"first": (2, 4), "second": (4, 6), "third": (6, 8), "unused": ()}
    for attempt, steps in written.items():
        journal.started("trial-000", attempt)
        for seed, step in product((0, 1), steps):
            path = tmp_path / "checkpoints" / attempt / f"seed-{seed}.step-{step}.pt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x" * 100)
    metrics = {parts.METRIC: 1.0}
    journal.result("trial-000", 8, metrics, {"0": metrics, "1": metrics})
    journal.ended("trial-000", "completed", 8, 1.0)
    plan = parts.plan(tmp_path, tmp_path, [0.1], seeds=2, disk_budget=budget)
    Retention(plan, journal).ended(journal.entries["trial-000"])
    journal.close()
    left = {path.relative_to(tmp_path / "checkpoints").as_posix() for path in tmp_path.rglob("*.pt")}
    assert left == {f"third/seed-{seed}.step-{step}.pt" for seed, step in product((0, 1), (6, 8))}
