"""What a Ray Train worker does: its share of every batch, and what it tells Ray Train and the driver."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siclip.data.batch import Batch
from siclip.errors import UserError
from siclip.models.clip import Clip
from siclip.training.loop import Save, resume, train
from siclip.training.trainer import Trainer, TrainingDiverged
from siclip_platform.recipes.recipe import Recipe
from siclip_platform.stream import Stream
from siclip_platform.stream.ray_reader import ray_batches
from siclip_platform.stream.trunk_features import CachedStream
from siclip_platform.training.build import CHECKPOINT, prepare, recipe_model
from siclip_platform.training.in_process import keeping_ids, start_blocks

FINAL = {"UserError": UserError, "TrainingDiverged": TrainingDiverged}
"""Failures that another try would only repeat."""


@dataclass(frozen=True)
class Failure:
    """A failure in `FINAL`, on its way to the driver."""

    kind: str
    message: str


class _TrainReporter:
    """Reports to Ray Train, and every figure at once to the driver through a queue; only the first worker does.

    Ray Train waits at a report until every worker has made it.
    """

    def __init__(self, queue: Any, costs: Mapping[str, float], first: bool) -> None:
        self.queue = queue
        self.costs = dict(costs)
        self.first = first
        self.started = time.perf_counter()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
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


class _Batches:
    """This worker's share of every batch. The first ones are read while the model is built.

    A run that goes on starts reading where it stands.
    """

    def __init__(self, recipe: Recipe, rank: int, workers: int, goes_on: bool) -> None:
        self.recipe = recipe
        self.place = (rank, workers)
        self.stream: Stream | CachedStream | None = None
        self._early: Iterator[Batch] | None = None
        if not goes_on and not recipe.data.trunk_cache:
            self.stream = Stream.of(recipe, recipe_model(recipe))
            training = recipe.training
            self._early = self._from(0, training.steps * training.batch_size)

    def __call__(self, start: int, stop: int) -> Iterator[Batch]:
        early, self._early = self._early, None
        return early if early is not None and start == 0 else self._from(start, stop)

    def _from(self, start: int, stop: int) -> Iterator[Batch]:
        assert self.stream is not None
        size = self.recipe.training.batch_size
        if self.recipe.data.reader == "ray" and isinstance(self.stream, Stream):
            return ray_batches(self.stream, size, start, stop, *self.place, nodes=self.recipe.data.reader_nodes)
        return self.stream.batches(size, start, stop, *self.place)


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
        _train_share(recipe, config["queue"], rank, workers, config["outputs"])
    except (UserError, TrainingDiverged) as error:
        failure = Failure(next(k for k, kind in FINAL.items() if isinstance(error, kind)), str(error))
        config["queue"].put(failure)
        if told is not None:
            told.put(failure)
            raise


def _train_share(recipe: Recipe, queue: Any, rank: int, workers: int, outputs: Path) -> None:
    import ray.train

    checkpoint = ray.train.get_checkpoint()
    batches = _Batches(recipe, rank, workers, goes_on=checkpoint is not None)
    prepared = prepare(recipe)
    batches.stream = prepared.stream
    if checkpoint:
        with checkpoint.as_directory() as folder:
            resume(prepared.trainer, Path(folder) / CHECKPOINT)
    costs = prepared.costs()
    reporter = _TrainReporter(queue, costs, first=rank == 0)
    reporter.log(0, costs)
    start_blocks(recipe, prepared, reporter)
    if workers > 1:
        _take_over_weights(prepared.trainer)
    with keeping_ids(outputs, recipe.hash):
        train(prepared.trainer, batches, reporter, prepared.evaluate if rank == 0 else _evaluated_elsewhere)


def _evaluated_elsewhere(model: Clip) -> dict[str, float]:
    return {}


def _take_over_weights(trainer: Trainer) -> None:
    """Start with the first worker's weights, should another device have initialised to others."""
    import torch.distributed as dist

    for tensor in trainer.model.state_dict().values():
        dist.broadcast(tensor, src=0)
