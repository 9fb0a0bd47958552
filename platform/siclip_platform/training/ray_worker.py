"""What a Ray Train worker does: its share of every batch, and what it tells Ray Train and the driver."""

from __future__ import annotations

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
from siclip_platform.stream import Stream, thread_batches
from siclip_platform.stream.ray_reader import ray_batches
from siclip_platform.stream.trunk_features import CachedStream
from siclip_platform.training.build import CHECKPOINT, Prepared, recipe_model
from siclip_platform.training.in_process import run_recipe

FINAL = {"UserError": UserError, "TrainingDiverged": TrainingDiverged}
"""Failures that another try would only repeat."""


@dataclass(frozen=True)
class Failure:
    """A failure in `FINAL`, on its way to the driver."""

    kind: str
    message: str


class _TrainReporter:
    """Reports to Ray Train, and every metric at once to the driver through a queue; only the first worker sends any.

    Ray Train waits at a report until every worker has made it, so the others report too, without metrics.
    """

    def __init__(self, queue: Any, first: bool) -> None:
        self.queue = queue
        self.first = first
        self.costs: dict[str, float] = {}
        self.started = time.perf_counter()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if step == 0:
            self.costs |= {name: value for name, value in metrics.items() if name.startswith("cost/")}
        if self.first:
            self.queue.put((step, dict(metrics)))

    def milestone(self, step: int, metrics: Mapping[str, float], save: Save | None) -> None:
        import ray.train

        if not self.first:
            ray.train.report({"step": step})
            return
        costs = self.costs | {"cost/seconds": time.perf_counter() - self.started}
        self.queue.put((step, dict(metrics)))
        if save is None:
            ray.train.report({"step": step, **metrics, **costs})
            return
        with tempfile.TemporaryDirectory() as folder:
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
        if early and not recipe.data.trunk_cache:
            training = recipe.training
            stream = Stream.of(recipe, recipe_model(recipe))
            self._early = self._read(stream, 0, training.steps * training.batch_size)

    def __call__(self, prepared: Prepared, start: int, stop: int) -> Iterator[Batch]:
        early, self._early = self._early, None
        if early is not None and start == 0:
            return early
        if isinstance(prepared.stream, CachedStream):
            return prepared.batches(start, stop, *self.share)
        return self._read(prepared.stream, start, stop)

    def _read(self, stream: Stream, start: int, stop: int) -> Iterator[Batch]:
        size, data = self.recipe.training.batch_size, self.recipe.data
        if data.reader == "ray":
            return ray_batches(stream, size, start, stop, *self.share, nodes=data.reader_nodes)
        return thread_batches(stream, size, start, stop, *self.share)


def train_worker(config: dict[str, Any]) -> None:
    """The training of one worker. A failure in `FINAL` is told to the driver and ends the run.

    A single worker then simply returns. Of several, the others may wait for it: it fails, Ray Train starts them all
    again, and they find the failure told.
    """
    import ray.train

    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    told = config["failures"]
    if told is not None and not told.empty():
        return
    try:
        recipe = Recipe.model_validate_json(config["recipe"])
        checkpoint = ray.train.get_checkpoint()
        run_recipe(
            recipe,
            _TrainReporter(config["queue"], first=rank == 0),
            None if checkpoint is None else _file_of(checkpoint),
            batches=_Share(recipe, rank, workers, early=checkpoint is None),
            outputs=config["outputs"],
        )
    except (UserError, TrainingDiverged) as error:
        failure = Failure(next(k for k, kind in FINAL.items() if isinstance(error, kind)), str(error))
        config["queue"].put(failure)
        if told is not None:
            told.put(failure)
            raise


@contextmanager
def _file_of(checkpoint: Any) -> Iterator[Path]:
    """Ray Train's checkpoint as a local file; a remote one is downloaded for as long as this lasts."""
    with checkpoint.as_directory() as folder:
        yield Path(folder) / CHECKPOINT
