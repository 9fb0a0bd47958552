"""The checkpoints of a study on disk: which are there, and which can go."""

from __future__ import annotations

import logging
import math
import shutil
from pathlib import Path

from siclip_platform.search.journal import Entry, Journal
from siclip_platform.search.lane import step_of
from siclip_platform.search.study import StudyPlan
from siclip_platform.search.trial import CHECKPOINTS

log = logging.getLogger(__name__)
TRAIN = "train"
"""Where Ray Train keeps those of trainings that run."""


def newest_checkpoint(folder: Path, entry: Entry, seed: int, until: int | None = None) -> Path | None:
    """The last checkpoint of one seed of a trial, at ``until`` or before; None if none is left."""
    found = [
        path
        for attempt in entry.attempts
        for path in (folder / CHECKPOINTS / attempt).glob(f"seed-{seed}.step-*.pt")
        if until is None or step_of(path) <= until
    ]
    return max(found, key=step_of, default=None)


def checkpoint_at(folder: Path, entry: Entry, seed: int, step: int) -> Path | None:
    """The checkpoint of one seed of a trial after exactly so many steps."""
    names = [folder / CHECKPOINTS / attempt / f"seed-{seed}.step-{step}.pt" for attempt in reversed(entry.attempts)]
    return next((path for path in names if path.is_file()), None)


def sweep(plan: StudyPlan, journal: Journal) -> list[str]:
    """Remove checkpoints until the study's fit in its budget; returns the trials that lost theirs.

    They go in this order: failed trials, pruned ones and completed ones outside the best ``plan.keep_checkpoints``,
    the worst first. Those of trials that are not over, also of paused ones, are never removed, nor the best's.
    Without a budget only failed and pruned trials lose theirs.
    """
    finished = {entry.name: entry for entry in journal.finished()}
    sign = 1 if plan.mode == "max" else -1

    def rank(entry: Entry) -> float:
        value = sign * entry.last.get(plan.metric, math.nan)
        return value if math.isfinite(value) else -math.inf

    completed = sorted((e for e in finished.values() if e.state == "completed"), key=rank)
    spare = completed[: -plan.keep_checkpoints] if plan.keep_checkpoints else completed
    failed = [entry for entry in finished.values() if entry.state == "failed"]
    pruned = sorted((entry for entry in finished.values() if entry.state == "pruned"), key=rank)
    removed: list[str] = []
    for entry in [*failed, *pruned, *spare]:
        over = plan.disk_budget is not None and _bytes(plan.folder) > plan.disk_budget
        if not over and (entry.state == "completed" or plan.disk_budget is not None):
            continue
        if _remove(plan, entry):
            removed.append(entry.name)
    if plan.disk_budget is not None and _bytes(plan.folder) > plan.disk_budget:
        log.warning(
            "checkpoints of running trials and of the best %d take %d MB, over the budget of %d MB",
            plan.keep_checkpoints, _bytes(plan.folder) // 10**6, plan.disk_budget // 10**6,
        )  # fmt: skip
    return removed


def _remove(plan: StudyPlan, entry: Entry) -> bool:
    places = [plan.folder / CHECKPOINTS / attempt for attempt in entry.attempts]
    if plan.backend == "train":
        places += [plan.folder / TRAIN / plan.recipe(entry.values, seed).hash for seed in plan.seed_numbers]
    there = [place for place in places if place.is_dir()]
    for place in there:
        shutil.rmtree(place, ignore_errors=True)
    return bool(there)


def _bytes(folder: Path) -> int:
    """Of all checkpoints; one that goes away meanwhile counts nothing."""
    total = 0
    for path in (*(folder / CHECKPOINTS).rglob("*.pt"), *(folder / TRAIN).rglob("*.pt")):
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total
