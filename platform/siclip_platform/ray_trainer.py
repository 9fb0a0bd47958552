"""A recipe under Ray Train, on one worker or several: the second of the two ways to run it.

It builds the trainer of `siclip_platform.trainer` and feeds it the same batches; the `Reporter` differs, and where
the batches may come from.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from siclip.data.batch import Batch
from siclip.errors import UserError
from siclip.models.clip import Clip
from siclip.training.loop import Save, resume, train
from siclip.training.trainer import Trainer, TrainingDiverged
from siclip_platform.divergence import keeping_ids
from siclip_platform.recipe import Recipe
from siclip_platform.storage import Place, RemotePath
from siclip_platform.stream import Stream
from siclip_platform.stream.ray_reader import check_reader_nodes, ray_batches
from siclip_platform.trainer import CHECKPOINT, Log, prepare, recipe_model, start_blocks
from siclip_platform.trunk_cache import CachedStream

FINAL = {"UserError": UserError, "TrainingDiverged": TrainingDiverged}
"""Failures that another try would only repeat."""
RETRIES = 2


@dataclass(frozen=True)
class TrainedModel:
    """The outcome of a run under Ray Train."""

    checkpoint: Path
    metrics: dict[str, float]


@dataclass(frozen=True)
class _Failure:
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


def _train_worker(config: dict[str, Any]) -> None:
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
        failure = _Failure(next(k for k, kind in FINAL.items() if isinstance(error, kind)), str(error))
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


def run_with_ray_train(
    recipe: Recipe,
    *,
    name: str,
    storage: Path,
    log: Log,
    worker_cpus: float = 1.0,
    workers: int = 1,
    checkpoints: Place | None = None,
) -> TrainedModel:
    """Train on Ray Train workers (each with a GPU where the cluster has that many); each reads its share of a batch.

    Several workers compute what one does with the whole batch, but for the order in which sums are taken.

    Needs a connected Ray. A run of the same name in the same storage goes on from its last checkpoint;
    ``checkpoints`` is where Ray Train keeps them, if not in ``storage``. A worker that is lost is started again,
    twice at the most; a recipe that cannot succeed is not.

    Raises:
        UserError: the recipe does not fit its data or teacher, or the batch cannot be divided.
        TrainingDiverged: see `siclip.training.loop.train`.
        RuntimeError: the training failed; the message is the worker's.
    """
    import ray
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer
    from ray.util.queue import Queue

    _check_workers(recipe, workers)
    check_reader_nodes(recipe.data.reader_nodes)
    use_gpu = ray.cluster_resources().get("GPU", 0) >= workers
    resources = {"CPU": worker_cpus} | ({"GPU": 1} if use_gpu else {})
    queue = Queue(actor_options=_beside_driver())
    failures = Queue(actor_options=_beside_driver()) if workers > 1 else None
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={
            "recipe": recipe.model_dump_json(),
            "queue": queue,
            "failures": failures,
            "outputs": storage.absolute().parent,
        },
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=use_gpu, resources_per_worker=resources),
        run_config=RunConfig(
            name=name,
            **_storage(checkpoints or storage),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            failure_config=FailureConfig(max_failures=RETRIES, controller_failure_limit=3),
        ),
    )
    told = _Told(log)
    try:
        with _draining(queue, told):
            result = trainer.fit()
    except TrainingFailedError as error:
        raise RuntimeError(f"training {name} failed: {error}") from error
    finally:
        if failures is not None:
            failures.shutdown()
    if told.failure is not None:
        raise FINAL[told.failure.kind](told.failure.message)
    metrics = {k: float(v) for k, v in (result.metrics or {}).items() if isinstance(v, int | float)}
    with result.checkpoint.as_directory() as folder:
        return TrainedModel(_keep(Path(folder) / CHECKPOINT, storage.parent / f"{name}.pt"), metrics)


def _beside_driver() -> dict[str, Any]:
    """Options of an actor that must outlive every other node: it runs on that of the driver."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    return {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(here, soft=False)}


def _storage(where: Place) -> dict[str, Any]:
    """Fields of Ray's `RunConfig`; a store's filesystem is ours, with bounded waiting, and holds no keys."""
    if isinstance(where, RemotePath):
        return {"storage_path": where.path, "storage_filesystem": where.filesystem}
    return {"storage_path": str(where)}


def _check_workers(recipe: Recipe, workers: int) -> None:
    size = recipe.training.batch_size
    if size % workers:
        raise UserError(f"training.batch_size {size} cannot be divided among {workers} workers: take a multiple")


@dataclass
class _Told:
    """What the workers told: figures are passed on, the first failure is kept."""

    log: Log
    failure: _Failure | None = field(default=None)

    def take(self, item: Any) -> None:
        if isinstance(item, _Failure):
            self.failure = self.failure or item
        else:
            self.log(*item)


@contextmanager
def _draining(queue: Any, told: _Told) -> Iterator[None]:
    """Take what arrives in the queue, in a thread of its own, until the block ends."""
    from ray.util.queue import Empty

    done = threading.Event()
    failures: list[Exception] = []

    def drain() -> None:
        while not (done.is_set() and queue.empty()):
            try:
                told.take(queue.get(timeout=0.5))
            except Empty:
                continue
            except Exception as error:  # the training goes on; told at its end
                failures.append(error)

    thread = threading.Thread(target=drain, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=30)
        queue.shutdown()
    if failures:
        first = failures[0]
        raise RuntimeError(f"{len(failures)} reports of the training could not be tracked: {first}") from first


def _keep(source: Path, target: Path) -> Path:
    temporary = target.with_suffix(".tmp")
    shutil.copyfile(source, temporary)
    temporary.replace(target)
    return target
