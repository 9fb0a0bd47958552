"""The checkpoints of a study on disk: which exist, and which are removed."""

from __future__ import annotations

import logging
import math
import shutil
from bisect import insort
from collections.abc import Collection, Iterable, Iterator
from itertools import chain, islice
from pathlib import Path

from siclip_platform.search.ledger.journal import Entry, Journal
from siclip_platform.search.study import StudyPlan
from siclip_platform.search.trial.seed_run import step_of
from siclip_platform.search.trial.trial import CHECKPOINTS

log = logging.getLogger(__name__)
TRAIN = "train"
"""The folder of Ray Train's checkpoints, in which trainings that run have theirs."""


def newest_checkpoint(folder: Path, entry: Entry, seed: int, until: int | None = None) -> Path | None:
    """The last checkpoint of one seed of a trial, not after step ``until``; None if there is none."""
    found = [
        path
        for attempt in entry.attempts
        for path in (folder / CHECKPOINTS / attempt).glob(f"seed-{seed}.step-*.pt")
        if until is None or step_of(path) <= until
    ]
    return max(found, key=step_of, default=None)


def checkpoint_at(folder: Path, entry: Entry, seed: int, step: int) -> Path | None:
    """The checkpoint of one seed of a trial after exactly ``step`` steps."""
    names = [folder / CHECKPOINTS / attempt / f"seed-{seed}.step-{step}.pt" for attempt in reversed(entry.attempts)]
    return next((path for path in names if path.is_file()), None)


class Retention:
    """Removes checkpoints as trials end.

    With a disk budget, checkpoints are removed until those of the study fit: first those of failed trials, then of
    pruned ones, then of completed ones outside the best ``plan.keep_checkpoints``, the worst first. Without a budget
    failed and pruned trials lose theirs. Checkpoints of running trials and of the best are never removed. Of a trial
    that was started more than once only the attempt with the last checkpoint keeps its own.

    The work per ended trial does not grow with the study: a finished trial's folders are measured once.
    """

    def __init__(self, plan: StudyPlan, journal: Journal) -> None:
        self.plan = plan
        self.journal = journal
        self._folders = _Folders(plan, journal)
        self._failed: list[Entry] = []
        self._pruned: list[Entry] = []
        self._completed: list[Entry] = []
        for entry in journal.finished():
            self._add(entry)

    def ended(self, entry: Entry, needed: Collection[str] = ()) -> list[str]:
        """Add a trial that has ended, then `sweep`."""
        if self.plan.population is None:  # members copy training states of earlier attempts
            self._remove_superseded(entry)
        self._add(entry)
        return self.sweep(needed)

    def _remove_superseded(self, entry: Entry) -> None:
        """Remove the checkpoints of attempts that a later attempt resumed from."""
        for seed in self.plan.seed_numbers if len(entry.attempts) > 1 else ():
            newest = newest_checkpoint(self.plan.folder, entry, seed)
            for attempt in entry.attempts:
                folder = self.plan.folder / CHECKPOINTS / attempt
                if newest is not None and folder != newest.parent:
                    for old in folder.glob(f"seed-{seed}.step-*.pt"):
                        old.unlink(missing_ok=True)

    def remove_unfinished(self, attempt: str) -> None:
        """Remove the checkpoints that an attempt was writing when its process was lost."""
        for left in (self.plan.folder / CHECKPOINTS / attempt).glob("*.tmp"):
            left.unlink(missing_ok=True)

    def _add(self, entry: Entry) -> None:
        if self.plan.disk_budget is not None:
            self._folders.measure(entry)
        if entry.state == "failed":
            insort(self._failed, entry, key=lambda each: each.number)
        else:
            insort(self._completed if entry.state == "completed" else self._pruned, entry, key=self._rank)

    def _rank(self, entry: Entry) -> tuple[float, int]:
        value = entry.last.get(self.plan.metric, math.nan)
        # NaN compares false with everything and would break the order.
        return value if math.isfinite(value) else -math.inf, entry.number

    def sweep(self, needed: Collection[str] = ()) -> list[str]:
        """Remove checkpoints; returns the trials that lost theirs. Those of the ``needed`` trials stay."""
        removed: list[str] = []
        done: list[Entry] = []
        for entry in self._candidates():
            if not self._over_budget():
                break
            if entry.name in needed:
                continue
            if self._folders.remove(entry):
                removed.append(entry.name)
            if not self._folders.busy(entry):
                done.append(entry)
        self._forget(done)
        if self.plan.disk_budget is not None and self._over_budget():
            log.warning(
                "checkpoints of running trials and of the best %d take %d MB, over the budget of %d MB",
                self.plan.keep_checkpoints,
                self._folders.bytes() // 10**6,
                self.plan.disk_budget // 10**6,
            )
        return removed

    def _over_budget(self) -> bool:
        """Without a budget everything that may go is too much."""
        return self.plan.disk_budget is None or self._folders.bytes() > self.plan.disk_budget

    def _candidates(self) -> Iterator[Entry]:
        """Entries that may lose their checkpoints, the least useful first."""
        yield from self._failed
        yield from self._pruned
        if self.plan.disk_budget is not None:
            spare = len(self._completed) - self.plan.keep_checkpoints
            yield from islice(self._completed, max(spare, 0))

    def _forget(self, entries: list[Entry]) -> None:
        # A completed entry outside the best can be forgotten too: later trials only push it further down.
        names = {entry.name for entry in entries}
        if names:
            self._failed, self._pruned, self._completed = (
                [entry for entry in each if entry.name not in names]
                for each in (self._failed, self._pruned, self._completed)
            )


class _Folders:
    """The checkpoint folders of a study's trials and their sizes.

    Under Ray Train a training's folder is named after its recipe alone, so a finished trial may share it with a
    running one of the same setting. Folders of teachers, best runs and confirmations beside them do not count.
    """

    def __init__(self, plan: StudyPlan, journal: Journal) -> None:
        self.plan = plan
        self.journal = journal
        self._checkpoints = plan.folder / CHECKPOINTS
        self._under_ray_train: dict[str, list[Path]] = {}
        self._sizes: dict[Path, int] = {}
        self._total = 0

    def of(self, entry: Entry) -> list[Path]:
        return [*(self._checkpoints / attempt for attempt in entry.attempts), *self._shared(entry)]

    def _shared(self, entry: Entry) -> list[Path]:
        if self.plan.backend != "train":
            return []
        if entry.name not in self._under_ray_train:
            hashes = [self.plan.recipe(entry.values, seed).hash for seed in self.plan.seed_numbers]
            self._under_ray_train[entry.name] = [self.plan.folder / TRAIN / name for name in hashes]
        return self._under_ray_train[entry.name]

    def _in_use(self) -> set[Path]:
        return set(chain.from_iterable(self._shared(entry) for entry in self.journal.in_flight()))

    def busy(self, entry: Entry) -> bool:
        """Whether a running trial uses one of its folders."""
        return not self._in_use().isdisjoint(self._shared(entry))

    def remove(self, entry: Entry) -> bool:
        """Remove the folders that no running trial uses; returns whether there were any."""
        in_use = self._in_use()
        found = [folder for folder in self.of(entry) if folder not in in_use and folder.is_dir()]
        for folder in found:
            shutil.rmtree(folder, ignore_errors=True)
            self._total -= self._sizes.pop(folder, 0)
        return bool(found)

    def measure(self, entry: Entry) -> None:
        """Note the size of a finished trial's folders."""
        # Final: in a trial's process the last checkpoint is written before the last milestone is reported.
        for folder in self.of(entry):
            size = _bytes([folder])
            self._total += size - self._sizes.get(folder, 0)
            self._sizes[folder] = size

    def bytes(self) -> int:
        """The size of all trials' checkpoints; those of running trials are measured again."""
        running = set(chain.from_iterable(self.of(entry) for entry in self.journal.in_flight()))
        known = self._total - sum(self._sizes.get(folder, 0) for folder in running)
        return known + _bytes(running)


def _bytes(folders: Iterable[Path]) -> int:
    total = 0
    for path in chain.from_iterable(folder.rglob("*.pt") for folder in folders):
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # a running trial replaced its checkpoint meanwhile
            continue
    return total
