"""A recipe under Ray Train, on one worker or several: the second of the two ways to run it.

`siclip_platform.training.ray_worker` builds the trainer of `siclip_platform.training.build` there and feeds it the
same batches; the `Reporter` differs, and where the batches may come from.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from siclip.errors import UserError
from siclip_platform.recipes.recipe import Recipe
from siclip_platform.storage import AnyPath, RemotePath
from siclip_platform.storage.atomic import replacing
from siclip_platform.stream.ray_reader import check_reader_nodes
from siclip_platform.training.build import CHECKPOINT, Log
from siclip_platform.training.ray_worker import FINAL, Failure, train_worker

RETRIES = 2


@dataclass(frozen=True)
class TrainedModel:
    """The outcome of a run under Ray Train."""

    checkpoint: Path
    metrics: dict[str, float]


def run_with_ray_train(
    recipe: Recipe,
    *,
    name: str,
    storage: Path,
    log: Log,
    worker_cpus: float = 1.0,
    workers: int = 1,
    checkpoints: AnyPath | None = None,
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
        train_worker,
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


def _storage(where: AnyPath) -> dict[str, Any]:
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
    failure: Failure | None = field(default=None)

    def take(self, item: Any) -> None:
        if isinstance(item, Failure):
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
    with replacing(target) as temporary:
        shutil.copyfile(source, temporary)
    return target
