"""The one sequence that trains a recipe, in this process.

A run that is started directly, a trial's seed run and a Ray Train worker all call `run_recipe`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import chain
from pathlib import Path

import torch.distributed as dist

from siclip.data.batch import Batch
from siclip.models.clip import Clip
from siclip.training.block_regression import fit_blocks
from siclip.training.diverged import TrainingDiverged, write_ids
from siclip.training.loop import Reporter, resume, train
from siclip.training.saving import Notice
from siclip.training.trainer import Trainer
from siclip.training.workers import workers
from siclip_platform.recipes.recipe import Recipe
from siclip_platform.storage.checkpoints import read_model
from siclip_platform.training.build import Prepared, prepare

RecipeBatches = Callable[[Prepared, int, int], Iterator[Batch]]
"""(built recipe, start, stop) → the batches of the positions start ≤ p < stop, in order."""
SavedRun = Path | AbstractContextManager[Path]
"""A checkpoint file, or a context in which it exists."""


def run_recipe(
    recipe: Recipe,
    reporter: Reporter,
    checkpoint: SavedRun | None = None,
    *,
    batches: RecipeBatches = Prepared.batches,
    outputs: Path | None = None,
    notice: Notice | None = None,
) -> dict[str, float]:
    """Train a recipe to its last step and return its costs.

    Where several processes share the run (`torch.distributed` is initialized), every one of them calls this. They
    start from the first one's weights, and only the first one evaluates.

    Args:
        recipe: what to train.
        reporter: receives metrics and milestones.
        checkpoint: a state that the same run saved, to resume from.
        batches: how batches are read; by default all of each batch, with threads of this process.
        outputs: the folder for the ids of a diverging run's batches, see `write_diverged_ids`.
        notice: see `siclip.training.loop.train`.

    Raises:
        UserError: the recipe does not fit its data, its teachers or the checkpoint.
        TrainingDiverged: see `siclip.training.loop.train`.
    """
    started = time.perf_counter()
    prepared = prepare(recipe)
    trainer = prepared.trainer
    if checkpoint is not None:
        with nullcontext(checkpoint) if isinstance(checkpoint, Path) else checkpoint as path:
            resume(trainer, path)
    costs = prepared.costs()
    # a resumed run logs them again: its reporter is a new one
    reporter.log(0, costs)
    regress_blocks(recipe, prepared, reporter)
    # after block regression, which every worker computes on whole batches
    if workers() > 1:
        _share_weights(trainer)
    first = workers() == 1 or dist.get_rank() == 0
    with write_diverged_ids(outputs, recipe.hash):
        evaluate = prepared.evaluate if first else _evaluate_elsewhere
        train(trainer, partial(batches, prepared), reporter, evaluate, notice)
    return costs | {"cost/seconds": time.perf_counter() - started}


def regress_blocks(recipe: Recipe, prepared: Prepared, reporter: Reporter) -> None:
    """Fit the SAS-P blocks to the teacher's on the first batches of the run's own stream; a resumed run skips it."""
    steps, size = recipe.model.block_regression_steps, recipe.training.batch_size
    trainer = prepared.trainer
    if not steps or trainer.step or not recipe.teacher:
        return
    teacher = read_model(recipe.teacher).to(trainer.device)
    batches = prepared.batches(0, steps * size)
    first = next(batches)
    # finds the micro-batch of a whole step; fitting one block at a time needs less memory
    trainer.probe(first)
    losses = fit_blocks(
        trainer.model,
        teacher,
        chain([first], batches),
        precision=recipe.training.precision,
        micro_batch_size=trainer.micro_batch_size,
    )
    reporter.log(0, {"train/block_regression_first": losses[0], "train/block_regression_last": losses[-1]})


@contextmanager
def write_diverged_ids(folder: Path | None, name: str) -> Iterator[None]:
    """If training inside diverges, write the ids of its batches to ``folder/NAME-diverged-at-STEP.csv``.

    Without a folder nothing is written; the exception has the ids all the same. Every worker of a run may write the
    file: each has the ids of all workers, so the content is the same.

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


def _evaluate_elsewhere(model: Clip) -> Mapping[str, float]:
    """A milestone without metrics: every worker must reach it, since Ray Train waits there for all of them."""
    return {}


def _share_weights(trainer: Trainer) -> None:
    """Copy the first worker's weights to all: another device may have initialized to others."""
    for tensor in trainer.model.state_dict().values():
        dist.broadcast(tensor, src=0)
