"""A Ray Train worker: it trains on its share of every batch and reports to Ray Train and to the driver."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siclip.data.batch import Batch
from siclip.errors import UserError
from siclip.training.diverged import TrainingDiverged
from siclip.training.loop import Save
from siclip_platform.recipes.recipe import Recipe
from siclip_platform.recipes.student import recipe_model
from siclip_platform.storage.atomic import remove_abandoned
from siclip_platform.stream import Stream
from siclip_platform.stream.reading import UNDER_RAY_TRAIN, stream_batches
from siclip_platform.training.build import CHECKPOINT, Prepared
from siclip_platform.training.in_process import run_recipe

FINAL = {"UserError": UserError, "TrainingDiverged": TrainingDiverged}
"""Errors that a retry would only repeat, by name."""
FOLDER = "siclip-checkpoint."
"""How the names of the folders begin from which Ray Train copies checkpoints."""


@dataclass(frozen=True)
class Failure:
    """An error in `FINAL`, as it is sent to the driver.

    Attributes:
        error: its name in `FINAL`.
        message: its text.
    """

    error: str
    message: str


class _TrainReporter:
    """Reports to Ray Train and sends every metric to the driver at once, through a queue.

    Only the first worker sends metrics and saves checkpoints.
    """

    def __init__(self, queue: Any, first: bool) -> None:
        """
        Args:
            queue: takes (step, metrics); the driver empties it.
            first: whether this is the first worker.
        """
        self.queue = queue
        self.first = first
        self.costs: dict[str, float] = {}
        self.started = time.perf_counter()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        # run_recipe logs the costs at step 0, also when it resumes
        if step == 0:
            self.costs |= {name: value for name, value in metrics.items() if name.startswith("cost/")}
        if self.first:
            self.queue.put((step, dict(metrics)))

    def milestone(self, step: int, metrics: Mapping[str, float], save: Save | None) -> None:
        import ray.train

        if not self.first:
            # Ray Train waits at a report until every worker has made it
            ray.train.report({"step": step})
            return
        costs = self.costs | {"cost/seconds": time.perf_counter() - self.started}
        self.queue.put((step, dict(metrics)))
        if save is None:
            ray.train.report({"step": step, **metrics, **costs})
            return
        # report copies the folder before it returns
        with tempfile.TemporaryDirectory(prefix=FOLDER, suffix=f".{os.getpid()}.tmp") as folder:
            save(Path(folder) / CHECKPOINT)
            checkpoint = ray.train.Checkpoint.from_directory(folder)
            ray.train.report({"step": step, **metrics, **costs}, checkpoint=checkpoint)


class _Share:
    """This worker's share of every batch, read as the recipe asks: a `RecipeBatches`.

    With ``early``, reading starts here, while the model is still being built.
    """

    def __init__(self, recipe: Recipe, rank: int, workers: int, early: bool) -> None:
        self.recipe = recipe
        self.share = (rank, workers)
        self._early: Iterator[Batch] | None = None
        # a trunk cache may have to be built first, and needs the model
        if early and not recipe.data.trunk_cache:
            training = recipe.training
            stream, size = Stream.of(recipe, recipe_model(recipe)), training.batch_size
            stop = training.steps * size
            self._early = stream_batches(stream, recipe.data, size, 0, stop, *self.share, default=UNDER_RAY_TRAIN)

    def __call__(self, prepared: Prepared, start: int, stop: int) -> Iterator[Batch]:
        early, self._early = self._early, None
        if early is not None and start == 0:
            return early
        return prepared.batches(start, stop, *self.share, default=UNDER_RAY_TRAIN)


def train_worker(config: dict[str, Any]) -> None:
    """Train one worker's share; Ray Train calls this in each worker's process.

    An error in `FINAL` is sent to the driver and ends the run. A single worker then returns. Among several workers
    the others may be waiting for the failed one, so it raises: Ray Train restarts them all, and each returns because
    the failure has been reported.

    Args:
        config: ``recipe`` (JSON), ``queue`` (metrics and failures, to the driver), ``failures`` (a queue that shows
            every worker whether the run has failed; None for a single worker), ``begin`` (the checkpoint of a run
            that this one extends; None for none) and ``outputs`` (a folder for the ids of a diverging run's batches).
    """
    import ray.train

    remove_abandoned(Path(tempfile.gettempdir()), prefix=FOLDER, deep=False)
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    failures = config["failures"]
    # raising again would make Ray Train use up its retries
    if failures is not None and not failures.empty():
        return
    try:
        recipe = Recipe.model_validate_json(config["recipe"])
        checkpoint = ray.train.get_checkpoint() or config["begin"]
        run_recipe(
            recipe,
            _TrainReporter(config["queue"], first=rank == 0),
            None if checkpoint is None else _file_of(checkpoint),
            batches=_Share(recipe, rank, workers, early=checkpoint is None),
            outputs=config["outputs"],
            notice=_is_preempted,
        )
    except (UserError, TrainingDiverged) as error:
        failure = Failure(next(name for name, final in FINAL.items() if isinstance(error, final)), str(error))
        config["queue"].put(failure)
        if failures is not None:
            failures.put(failure)
            raise


def _is_preempted() -> bool:
    """Whether a machine of this run will be taken away; Ray Train waits here for every worker."""
    import ray.train

    return ray.train.get_preemption_info() is not None


@contextmanager
def _file_of(checkpoint: Any) -> Iterator[Path]:
    """Ray Train's checkpoint as a local file; a remote one is downloaded and deleted afterwards."""
    with checkpoint.as_directory() as folder:
        yield Path(folder) / CHECKPOINT
