"""One recipe trained in this process."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from siclip.data.batch import Batch
from siclip.training.block_regression import fit_blocks
from siclip.training.diverged import TrainingDiverged, write_ids
from siclip.training.loop import Reporter, train
from siclip_platform.recipes.recipe import Recipe
from siclip_platform.storage.checkpoints import read_model
from siclip_platform.training.build import Prepared, prepare

if TYPE_CHECKING:
    from siclip.data.batch import Batch
    from siclip.training.loop import Reporter


def start_blocks(recipe: Recipe, prepared: Prepared, reporter: Reporter) -> None:
    """Block regression on the first batches of the run's own stream; nothing for a run that goes on."""
    steps, size = recipe.model.block_regression_steps, recipe.training.batch_size
    trainer = prepared.trainer
    if not steps or trainer.step or not recipe.teacher:
        return
    teacher = read_model(recipe.teacher).to(trainer.device)
    batches = prepared.stream.batches(size, 0, steps * size)
    first = next(batches)
    trainer.probe(first)  # one block at a time needs less than a step
    batches = chain([first], batches)
    losses = fit_blocks(
        trainer.model,
        teacher,
        batches,
        precision=recipe.training.precision,
        micro_batch_size=trainer.micro_batch_size,
    )
    reporter.log(0, {"train/block_regression_first": losses[0], "train/block_regression_last": losses[-1]})


def run_in_process(recipe: Recipe, reporter: Reporter, outputs: Path | None = None) -> dict[str, float]:
    """Train here, on batches read here; returns the costs.

    Raises:
        TrainingDiverged: with ``outputs``, a folder, it names the file there that holds the ids of its batches.
    """
    started = time.perf_counter()
    prepared = prepare(recipe)

    def batches(start: int, stop: int) -> Iterator[Batch]:
        return prepared.stream.batches(recipe.training.batch_size, start, stop)

    costs = prepared.costs()
    reporter.log(0, costs)
    start_blocks(recipe, prepared, reporter)
    with keeping_ids(outputs, recipe.hash):
        train(prepared.trainer, batches, reporter, prepared.evaluate)
    return costs | {"cost/seconds": time.perf_counter() - started}


def train_recipe(recipe: Recipe, reporter: Reporter, checkpoint: Path | None) -> None:
    """The recipe's own training, in this process."""
    from siclip.training.loop import resume, train
    from siclip_platform.training.build import prepare

    prepared = prepare(recipe)
    size = recipe.training.batch_size
    if checkpoint is not None:
        resume(prepared.trainer, checkpoint)

    def batches(start: int, stop: int) -> Iterator[Batch]:
        return prepared.stream.batches(size, start, stop)

    reporter.log(0, prepared.costs())
    start_blocks(recipe, prepared, reporter)
    train(prepared.trainer, batches, reporter, prepared.evaluate)


@contextmanager
def keeping_ids(folder: Path | None, name: str) -> Iterator[None]:
    """Where training inside diverges, its batches' ids go to ``folder/NAME-diverged-at-STEP.csv``.

    Without a folder nothing is written, and the exception still holds them. Every worker of a run may do this: each
    has the ids of all, and the file is the same.

    Raises:
        TrainingDiverged: the one raised inside, with the file's path in its message.
    """
    try:
        yield
    except TrainingDiverged as error:
        if folder is None or not error.batches:
            raise
        folder.mkdir(parents=True, exist_ok=True)
        raise write_ids(error, folder / f"{name}-diverged-at-{error.batches[-1].step}.csv") from None
