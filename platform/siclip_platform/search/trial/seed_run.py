"""One seed of a trial: its training in a thread of its own that stands still between its milestones."""

from __future__ import annotations

import queue
import re
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from siclip_platform.recipes.recipe import Recipe
from siclip_platform.training.memory import first_line, give_back_memory, is_out_of_memory, process_figures

if TYPE_CHECKING:
    from siclip.training.loop import Reporter, Save

History = list[tuple[int, dict[str, float]]]
KEPT = 2
CLOSE_SECONDS = 60.0
MADE_OF = "cost/parameters"


class Run(Protocol):
    """One training of a recipe; ``checkpoint``, which an earlier start of it saved, is to be gone on from."""

    def __call__(self, recipe: Recipe, reporter: Reporter, checkpoint: Path | None) -> object: ...


@dataclass(frozen=True)
class Milestone:
    """An evaluation of one seed, with how many parameters there are. ``history``: what was logged since the last."""

    step: int
    metrics: dict[str, float]
    history: History = field(default_factory=list)

    def figures(self) -> dict[str, Any]:
        return {"history": self.history, "metrics": self.metrics}


class _Closed(BaseException):
    """The trial was stopped: the training's thread unwinds."""


class OutOfMemory(RuntimeError):
    """Device or host memory was not enough, also for the second try."""


class Lane:
    """The milestones of one seed, in order: those that are known already, then those of its training.

    The training goes on only while the next milestone is waited for, so that several seeds share one process. One
    that runs out of memory is, with ``again``, started once more with half the micro-batch; ``notes`` then say so.
    ``close`` ends it.

    ``place``: the folder for its checkpoints ``seed-S.step-N.pt``, of which the last two are kept.
    """

    def __init__(
        self, recipe: Recipe, seed: int, run: Run, place: Path, checkpoint: Path | None, known: Sequence[Milestone],
        again: bool = True,
    ) -> None:  # fmt: skip
        self.recipe = recipe
        self.seed = seed
        self.run = run
        self.place = place
        self.checkpoint = checkpoint
        self.known = list(known)
        self.again = again
        self.notes: dict[str, str] = {}
        self._training: _Training | None = None

    def __iter__(self) -> Iterator[Milestone]:
        step, seconds = 0, 0.0
        for moment in self.known:
            step, seconds = moment.step, moment.metrics.get("cost/seconds", 0.0)
            yield moment
        for attempt in range(2):
            if step >= self.recipe.training.steps:
                return
            self._training = _Training(self, seconds)
            for moment in self._training:
                if moment.step > step:
                    step = moment.step
                    yield moment
            if self._training.out_of_memory is None:
                return
            seconds += self._training.seconds
            self._halve(self._training.out_of_memory, attempt)

    def _halve(self, message: str, attempt: int) -> None:
        self._training = None
        give_back_memory()
        training = self.recipe.training
        size = training.micro_batch_size
        size = size if isinstance(size, int) and size else training.batch_size
        if attempt or size % 2 or not self.again:
            why = "also with half the micro-batch" if attempt else f"a micro-batch of {size} cannot be halved"
            why = why if self.again else "and all members of a population have the same micro-batch"
            raise OutOfMemory(f"out of memory, {why}: {message}")
        self.recipe = self.recipe.updated({"training.micro_batch_size": size // 2})
        self.checkpoint = None  # it is of a run with the whole micro-batch
        self.notes = {"oom_retries": "1", "micro_batch_size": str(size // 2)}

    def keep(self, step: int, save: Save) -> None:
        """Write a checkpoint and drop those before the last two: the driver may not know of the last yet."""
        self.place.mkdir(parents=True, exist_ok=True)
        save(self.place / f"seed-{self.seed}.step-{step}.pt")
        for old in sorted(self.place.glob(f"seed-{self.seed}.step-*.pt"), key=step_of)[:-KEPT]:
            old.unlink(missing_ok=True)

    def close(self) -> None:
        if self._training is not None:
            self._training.close()
            self._training = None


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint's name."""
    found = re.search(r"step-(\d+)\.pt$", checkpoint.name)
    return int(found[1]) if found else 0


class _Training:
    """A `Run` in a thread; a `Reporter` on its side, an iterator of milestones on the other."""

    def __init__(self, lane: Lane, earlier_seconds: float) -> None:
        self.lane = lane
        self.earlier = earlier_seconds
        self.seconds = 0.0
        self.out_of_memory: str | None = None
        self._history: History = []
        self._made_of: dict[str, float] = {}
        self._save: Save | None = None
        self._moments: queue.SimpleQueue[Milestone | BaseException | None] = queue.SimpleQueue()
        self._turns: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __iter__(self) -> Iterator[Milestone]:
        self._thread.start()
        while True:
            self._turns.put(True)
            moment = self._moments.get()
            if moment is None:
                self._thread.join()
                return
            if isinstance(moment, BaseException):
                self._thread.join()
                raise moment
            yield moment

    def close(self) -> None:
        if self._thread.is_alive():
            self._turns.put(False)
            self._thread.join(CLOSE_SECONDS)

    def _work(self) -> None:
        ended: BaseException | None = None
        try:
            self._turns.get()
            self._since = time.perf_counter()
            self.lane.run(self.lane.recipe, self, self.lane.checkpoint)
        except _Closed as error:
            traceback.clear_frames(error.__traceback__)
        except BaseException as error:
            if is_out_of_memory(error):
                self.out_of_memory = first_line(error)
                traceback.clear_frames(error.__traceback__)  # they hold what was computed
            else:
                ended = error
        self._save = None
        self._moments.put(ended)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._history.append((step, dict(metrics)))
        self._made_of |= {key: value for key, value in metrics.items() if key.startswith(MADE_OF)}

    def milestone(self, step: int, metrics: Mapping[str, float], save: Save | None) -> None:
        """Holds back what is due between evaluations; a checkpoint is written before its milestone is told."""
        self._save = save or self._save
        if not metrics:
            return
        if self._save is not None:
            self.lane.keep(step, self._save)
            self._save = None
        self.log(step, process_figures())
        now = time.perf_counter()
        self.seconds += now - self._since
        history, self._history = self._history, []
        figures = self._made_of | dict(metrics) | {"cost/seconds": self.earlier + self.seconds}
        self._moments.put(Milestone(step, figures, history))
        if not self._turns.get():
            raise _Closed
        self._since = time.perf_counter()
