"""The checkpoints of a study on disk: which are there, and which can go."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Collection
from itertools import chain
from pathlib import Path

from siclip_platform.search.ledger.journal import Entry, Journal
from siclip_platform.search.study import StudyPlan
from siclip_platform.search.trial.seed_run import step_of
from siclip_platform.search.trial.trial import CHECKPOINTS

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


def sweep(plan: StudyPlan, journal: Journal, needed: Collection[str] = ()) -> list[str]:
    """Remove checkpoints until the study's fit in its budget; returns the trials that lost theirs.

    They go in this order: failed trials, pruned ones and completed ones outside the best ``plan.keep_checkpoints``,
    the worst first. Those of trials that are not over are never removed, nor the best's, nor those of the trials
    that are still ``needed``. Without a budget only failed and pruned trials lose theirs.
    """
    trained = _Trained(plan, journal)
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
        over = plan.disk_budget is not None and trained.bytes() > plan.disk_budget
        if entry.name in needed or (not over and (entry.state == "completed" or plan.disk_budget is not None)):
            continue
        if trained.remove(entry):
            removed.append(entry.name)
    if plan.disk_budget is not None and trained.bytes() > plan.disk_budget:
        log.warning(
            "checkpoints of running trials and of the best %d take %d MB, over the budget of %d MB",
            plan.keep_checkpoints, trained.bytes() // 10**6, plan.disk_budget // 10**6,
        )  # fmt: skip
    return removed


class _Trained:
    """The folders with checkpoints of a study's trials.

    Under Ray Train a training's folder is named by its recipe alone, so a trial that is over may share it with one of
    the same setting that runs; of teachers, best and confirmations there are folders beside them.
    """

    def __init__(self, plan: StudyPlan, journal: Journal) -> None:
        self.checkpoints = plan.folder / CHECKPOINTS
        self.under_ray_train = {entry.name: _ray_folders(plan, entry) for entry in journal.entries.values()}
        self.busy = {place for entry in journal.in_flight() for place in self.under_ray_train[entry.name]}

    def remove(self, entry: Entry) -> bool:
        """Whether there was anything to remove."""
        own = [self.checkpoints / attempt for attempt in entry.attempts]
        places = [*own, *(place for place in self.under_ray_train[entry.name] if place not in self.busy)]
        there = [place for place in places if place.is_dir()]
        for place in there:
            shutil.rmtree(place, ignore_errors=True)
        return bool(there)

    def bytes(self) -> int:
        """Of all trials' checkpoints; one that goes away meanwhile counts nothing."""
        places = {self.checkpoints, *chain.from_iterable(self.under_ray_train.values())}
        total = 0
        for path in chain.from_iterable(place.rglob("*.pt") for place in places):
            try:
                total += path.stat().st_size
            except FileNotFoundError:
                continue
        return total


def _ray_folders(plan: StudyPlan, entry: Entry) -> list[Path]:
    hashes = [plan.recipe(entry.values, seed).hash for seed in plan.seed_numbers] if plan.backend == "train" else []
    return [plan.folder / TRAIN / name for name in hashes]
