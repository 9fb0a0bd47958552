"""The training loop. Its only interface to the outside is a small `Reporter`; it does not depend on Ray."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from torch import Tensor

from siclip.checkpoints.formats import load_checkpoint, read_checkpoint, save_checkpoint
from siclip.data.batch import Batch
from siclip.errors import UserError
from siclip.models.clip import Clip
from siclip.training.memory import peak_memory
from siclip.training.saving import Notice, Saving
from siclip.training.trainer import Trainer
from siclip.training.workers import workers

Save = Callable[[Path], None]
Batches = Callable[[int, int], Iterator[Batch]]
"""(first position, last position) in samples → the batches between them, in order."""
Evaluate = Callable[[Clip], Mapping[str, float]]


class Reporter(Protocol):
    """Receives a run's metrics. Names have a prefix: ``train/…``, ``cost/…`` or that of the evaluation."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics of a training step, every ``log_every`` steps and after the last one."""

    def milestone(self, step: int, metrics: Mapping[str, float], save: Save | None) -> None:
        """An evaluation was done or a checkpoint is due.

        Args:
            step: number of completed steps.
            metrics: of the evaluation; empty if there was none.
            save: writes a checkpoint to a path; None if none is due.
        """


def train(
    trainer: Trainer,
    batches: Batches,
    reporter: Reporter,
    evaluate: Evaluate | None = None,
    notice: Notice | None = None,
) -> None:
    """Train from the trainer's current step to its last one.

    Args:
        trainer: new or resumed.
        batches: the data.
        reporter: receives metrics and checkpoints.
        evaluate: measures the model every ``evaluate_every`` steps and after the last one; None: no evaluation.
        notice: whether a machine will be taken away; a checkpoint is then written at once.

    Raises:
        TrainingDiverged: loss or gradient were not finite for ``max_skipped_steps`` consecutive steps.
        RuntimeError: the data ended before the last step.
    """
    config = trainer.config
    if trainer.step == config.steps:
        return
    clock = _Clock(config.batch_size, trainer.training_seconds)
    saving = Saving(config, trainer.device, trainer.training_seconds, notice)
    start, stop = trainer.step * config.batch_size, config.steps * config.batch_size
    for batch in clock.waiting(batches(start, stop)):
        metrics = trainer.train_step(batch)
        clock.count()
        step = trainer.step
        trainer.training_seconds = clock.total()
        last = step == config.steps
        if last or step % config.log_every == 0:
            # Reading the values waits for the device, so this belongs to the training time.
            values = {f"train/{name}": _number(value) for name, value in metrics.items()}
            with clock.paused():
                values |= {f"train/{name}": value for name, value in trainer.diagnose(batch).items()}
            costs = clock.read()
            costs[f"cost/device_seconds_{trainer.device.type}"] = costs["cost/training_seconds"] * workers()
            reporter.log(step, values | costs | {"cost/peak_memory_mib": peak_memory(trainer.device) / 2**20})
        evaluates = evaluate is not None and (last or _due(step, config.evaluate_every))
        saves = saving.due(step, trainer.training_seconds) or last
        if evaluates or saves:
            with clock.paused():
                evaluation = evaluate(trainer.result) if evaluates and evaluate else {}
                reporter.milestone(step, evaluation, _saver(trainer, reporter) if saves else None)
        if last:
            return
    raise RuntimeError(f"the data ended at step {trainer.step} of {config.steps}")


def resume(trainer: Trainer, path: Path) -> None:
    """Load weights and training state from a checkpoint that `train` saved. An error leaves the trainer unchanged.

    Raises:
        UserError: the file cannot be read, has no training state or is of another run; the message lists the
            differences.
    """
    training = read_checkpoint(path)["training"]
    if training is None:
        raise UserError(
            f"{path} contains a model without training state: it can be used as a teacher, but not resumed"
        )
    try:
        trainer.check_state(training)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    load_checkpoint(trainer.model, path)
    trainer.load_state_dict(training)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _number(value: Tensor | float) -> float:
    return value.item() if isinstance(value, Tensor) else value


def _saver(trainer: Trainer, reporter: Reporter) -> Save:
    def save(path: Path) -> None:
        save_checkpoint(path, trainer.result, trainer.state_dict())
        reporter.log(trainer.step, {"cost/checkpoint_bytes": float(path.stat().st_size)})

    return save


class _Clock:
    """Measures training time, throughput and the share of time spent waiting for data.

    Training time includes earlier sessions and excludes evaluations and the wait for the first batch. Throughput and
    waiting are since the last `read`.
    """

    def __init__(self, batch_size: int, earlier_seconds: float) -> None:
        self.batch_size = batch_size
        self.steps = 0
        self.before = earlier_seconds
        self.waited = 0.0
        self.first_batch: float | None = None
        self.since = time.perf_counter()

    def waiting(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches, with the wait for each counted; the first wait, when reading has only started, separately."""
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            seconds = time.perf_counter() - asked
            # Opening the data is not training: the start of the interval moves past the first wait.
            if self.first_batch is None:
                self.first_batch = seconds
                self.since += seconds
            else:
                self.waited += seconds
            if batch is None:
                return
            yield batch

    def count(self) -> None:
        self.steps += 1

    def total(self) -> float:
        return self.before + time.perf_counter() - self.since

    def read(self) -> dict[str, float]:
        now = time.perf_counter()
        seconds, self.since = now - self.since, now
        self.before += seconds
        metrics = {
            "train/samples_per_second": self.steps * self.batch_size / seconds,
            "train/data_wait_share": min(1.0, self.waited / seconds),
            "cost/training_seconds": self.before,
            "cost/first_batch_seconds": self.first_batch or 0.0,
        }
        self.steps, self.waited = 0, 0.0
        return metrics

    def paused(self) -> _Pause:
        return _Pause(self)


class _Pause:
    def __init__(self, clock: _Clock) -> None:
        self.clock = clock

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.clock.since += time.perf_counter() - self.start
