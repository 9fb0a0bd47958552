"""One seed of a trial: its training runs in its own thread, which pauses at each milestone."""

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
from siclip_platform.training.memory import first_line, give_back_memory, is_out_of_memory, process_metrics

if TYPE_CHECKING:
    from siclip.training.loop import Reporter, Save

History = list[tuple[int, dict[str, float]]]
KEPT = 2
# A paused training unwinds at once; this bounds the wait for one that hangs.
CLOSE_SECONDS = 60.0
PARAMETER_COUNTS = "cost/parameters"


class Run(Protocol):
    """One training of a recipe; ``checkpoint`` is a state that the same run saved, to resume from."""

    def __call__(self, recipe: Recipe, reporter: Reporter, checkpoint: Path | None) -> object: ...


@dataclass(frozen=True)
class Milestone:
    """An evaluation of one seed.

    Attributes:
        step: the optimizer step.
        metrics: the validation metrics, the parameter counts and the training seconds so far.
        history: (step, metrics) logged since the last milestone.
    """

    step: int
    metrics: dict[str, float]
    history: History = field(default_factory=list)

    def report(self) -> dict[str, Any]:
        """What a trial reports of this seed."""
        return {"history": self.history, "metrics": self.metrics}


class _Closed(BaseException):
    """The trial was stopped: the training's thread unwinds."""


class OutOfMemory(RuntimeError):
    """Device or host memory was not enough, also with half the micro-batch if that was tried."""


class SeedRun:
    """Iterates over the milestones of one seed: the known ones first, then those of its training.

    The training advances only while the next milestone is awaited, so several seeds can share one process.
    """

    def __init__(
        self,
        recipe: Recipe,
        seed: int,
        run: Run,
        folder: Path,
        checkpoint: Path | None,
        known: Sequence[Milestone],
        retries: bool = True,
    ) -> None:
        """Prepare a run; the training starts with the first milestone that is not known.

        Args:
            recipe: what to train, with its seed.
            seed: the seed, for checkpoint names.
            run: the training.
            folder: for checkpoints ``seed-S.step-N.pt``, of which the last two are kept.
            checkpoint: the state to resume from.
            known: milestones that an earlier start reached.
            retries: whether a training that runs out of memory is repeated once with half the micro-batch; ``notes``
                then say so.
        """
        self.recipe = recipe
        self.seed = seed
        self.run = run
        self.folder = folder
        self.checkpoint = checkpoint
        self.known = list(known)
        self.retries = retries
        self.notes: dict[str, str] = {}
        self._training: _Training | None = None

    def __iter__(self) -> Iterator[Milestone]:
        step, seconds = 0, 0.0
        for milestone in self.known:
            step, seconds = milestone.step, milestone.metrics.get("cost/seconds", 0.0)
            yield milestone
        # The second attempt has half the micro-batch and may pass milestones that the first one has yielded.
        for attempt in range(2):
            if step >= self.recipe.training.steps:
                return
            self._training = _Training(self, seconds)
            for milestone in self._training:
                if milestone.step > step:
                    step = milestone.step
                    yield milestone
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
        if attempt or size % 2 or not self.retries:
            why = "also with half the micro-batch" if attempt else f"a micro-batch of {size} cannot be halved"
            why = why if self.retries else "and all members of a population need the same micro-batch"
            raise OutOfMemory(f"out of memory, {why}: {message}")
        self.recipe = self.recipe.updated({"training.micro_batch_size": size // 2})
        self.checkpoint = None  # a run with the whole micro-batch saved it
        self.notes = {"oom_retries": "1", "micro_batch_size": str(size // 2)}

    def keep(self, step: int, save: Save) -> None:
        """Write a checkpoint and remove all but the last two."""
        self.folder.mkdir(parents=True, exist_ok=True)
        save(self.folder / f"seed-{self.seed}.step-{step}.pt")
        # Two: a kill can keep the last milestone from the journal, and the trial then resumes from the one before.
        for old in sorted(self.folder.glob(f"seed-{self.seed}.step-*.pt"), key=step_of)[:-KEPT]:
            old.unlink(missing_ok=True)

    def close(self) -> None:
        """End the training's thread."""
        if self._training is not None:
            self._training.close()
            self._training = None


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint's name."""
    found = re.search(r"step-(\d+)\.pt$", checkpoint.name)
    return int(found[1]) if found else 0


class _Training:
    """A `Run` in a thread: a `Reporter` on the training's side, an iterator over milestones on the other."""

    def __init__(self, seed_run: SeedRun, earlier_seconds: float) -> None:
        self.seed_run = seed_run
        self.earlier = earlier_seconds
        self.seconds = 0.0
        self.out_of_memory: str | None = None
        self._history: History = []
        self._parameters: dict[str, float] = {}
        self._save: Save | None = None
        self._milestones: queue.SimpleQueue[Milestone | BaseException | None] = queue.SimpleQueue()
        self._permits: queue.SimpleQueue[bool] = queue.SimpleQueue()
        # A daemon: a training that hangs must not keep the trial's process alive.
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __iter__(self) -> Iterator[Milestone]:
        self._thread.start()
        while True:
            self._permits.put(True)
            milestone = self._milestones.get()
            if milestone is None:
                self._thread.join()
                return
            if isinstance(milestone, BaseException):
                self._thread.join()
                raise milestone
            yield milestone

    def close(self) -> None:
        if self._thread.is_alive():
            self._permits.put(False)
            self._thread.join(CLOSE_SECONDS)

    def _work(self) -> None:
        ended: BaseException | None = None
        try:
            self._permits.get()
            self._since = time.perf_counter()
            self.seed_run.run(self.seed_run.recipe, self, self.seed_run.checkpoint)
        except _Closed as error:
            traceback.clear_frames(error.__traceback__)
        except BaseException as error:
            if is_out_of_memory(error):
                self.out_of_memory = first_line(error)
                traceback.clear_frames(error.__traceback__)  # the frames hold tensors, and the retry needs the memory
            else:
                ended = error
        self._save = None
        self._milestones.put(ended)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._history.append((step, dict(metrics)))
        self._parameters |= {key: value for key, value in metrics.items() if key.startswith(PARAMETER_COUNTS)}

    def milestone(self, step: int, metrics: Mapping[str, float], save: Save | None) -> None:
        """Write a due checkpoint before its milestone is reported; one between evaluations waits for the next."""
        training = self.seed_run.recipe.training
        # Without a number of steps a trial keeps only its last checkpoint: those of many trials would fill the disk.
        if training.checkpoint_every != "auto" or step == training.steps:
            self._save = save or self._save
        if not metrics:
            return
        if self._save is not None:
            self.seed_run.keep(step, self._save)
            self._save = None
        self.log(step, process_metrics())
        now = time.perf_counter()
        self.seconds += now - self._since
        history, self._history = self._history, []
        whole = self._parameters | dict(metrics) | {"cost/seconds": self.earlier + self.seconds}
        self._milestones.put(Milestone(step, whole, history))
        if not self._permits.get():
            raise _Closed
        self._since = time.perf_counter()
