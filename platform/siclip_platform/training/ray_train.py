"""Train a recipe with Ray Train: the driver's side. The workers run `siclip_platform.training.ray_worker`."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from siclip.errors import UserError
from siclip_platform.cluster.losses import ProcessLost, training_loss
from siclip_platform.cluster.ray_patches import Controller, reporting_controller
from siclip_platform.recipes.recipe import Recipe
from siclip_platform.storage import AnyPath, RemotePath
from siclip_platform.storage.atomic import replacing
from siclip_platform.stream.ray_reader import check_reader_nodes
from siclip_platform.training.build import CHECKPOINT, Log
from siclip_platform.training.ray_worker import FINAL, Failure, train_worker

RETRIES = 2
DRAIN_SECONDS = 30


@dataclass(frozen=True)
class TrainedModel:
    """The result of a run under Ray Train.

    Attributes:
        checkpoint: a local copy of the last checkpoint.
        metrics: those of the last report, with the run's costs.
    """

    checkpoint: Path
    metrics: dict[str, float]


@dataclass(frozen=True)
class SavedState:
    """The last checkpoint of a run under Ray Train.

    Attributes:
        step: the steps that are done.
        checkpoint: Ray Train's handle of it, for its workers.
    """

    step: int
    checkpoint: Any


def saved_state(name: str, storage: AnyPath) -> SavedState | None:
    """The last state that a run has saved; None if it has saved none.

    Args:
        name: of the run.
        storage: where Ray Train stored its checkpoints.
    """
    from ray.train import Result

    folder = storage / name
    where = {"storage_filesystem": folder.filesystem} if isinstance(folder, RemotePath) else {}
    try:
        found = Result.from_path(folder.path if isinstance(folder, RemotePath) else str(folder), **where)
    except RuntimeError:  # there is no such run, or it has not begun
        return None
    return SavedState(int(found.metrics["step"]), found.checkpoint) if found.checkpoint else None


def run_with_ray_train(
    recipe: Recipe,
    *,
    name: str,
    storage: Path,
    log: Log,
    worker_cpus: float = 1.0,
    workers: int = 1,
    checkpoints: AnyPath | None = None,
    stopped: threading.Event | None = None,
    begin: SavedState | None = None,
) -> TrainedModel:
    """Train a recipe with Ray Train.

    Each worker reads its share of every batch. Several workers compute what one computes with the whole batch, up to
    the order of summation. Each worker gets a GPU if the cluster has one for every worker.

    A lost worker is restarted at most twice; a recipe that cannot succeed is not retried. Ray must be connected.

    Args:
        recipe: what to train.
        name: the run's name. A run with the same name in the same storage resumes from its last checkpoint.
        storage: the folder of Ray Train's state. The last checkpoint is copied beside it, to ``NAME.pt``; the ids of
            a diverging run's batches are written there too.
        log: receives every metric as it is reported.
        worker_cpus: CPUs of each worker.
        workers: the number of workers; it must divide the batch size.
        checkpoints: where Ray Train stores checkpoints (default: ``storage``).
        begin: the state that a run begins with that has saved none; another run, which this one extends, saved it.
        stopped: if another thread sets it, the run's processes are killed and this call fails within seconds.

    Raises:
        UserError: the recipe does not fit its data or its teachers, the batch cannot be divided, or no node can run
            the reading tasks.
        TrainingDiverged: see `siclip.training.loop.train`.
        RuntimeError: the training failed, with the worker's message, or a metric could not be logged.
    """
    import ray
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer
    from ray.util.queue import Queue

    _check_workers(recipe, workers)
    check_reader_nodes(recipe.data.reader_nodes)
    # for all workers or for none: a batch that different devices share would not be computed the same way
    use_gpu = ray.cluster_resources().get("GPU", 0) >= workers
    resources = {"CPU": worker_cpus} | ({"GPU": 1} if use_gpu else {})
    queue = Queue(actor_options=_on_driver_node())
    # a single worker returns after a final failure, which ends the run
    failures = Queue(actor_options=_on_driver_node()) if workers > 1 else None
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={
            "recipe": recipe.model_dump_json(),
            "queue": queue,
            "failures": failures,
            "begin": begin and begin.checkpoint,
            "outputs": storage.absolute().parent,
        },
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=use_gpu, resources_per_worker=resources),
        run_config=RunConfig(
            name=name,
            **_storage(checkpoints or storage),
            # resuming needs the last one only
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            failure_config=FailureConfig(max_failures=RETRIES, controller_failure_limit=3),
            callbacks=[reporting_controller(queue)] if stopped else [],
        ),
    )
    received = _Received(log, stopped or threading.Event())
    try:
        with _draining(queue, received):
            result = trainer.fit()
    except TrainingFailedError as error:
        lost = training_loss(error)
        if lost:
            raise ProcessLost(f"training {name} failed: {lost}") from None
        raise RuntimeError(f"training {name} failed: {error}") from error
    finally:
        if failures is not None:
            failures.shutdown()
    if received.failure is not None:
        raise FINAL[received.failure.error](received.failure.message)
    _remove_superseded(result.checkpoint)
    metrics = {k: float(v) for k, v in (result.metrics or {}).items() if isinstance(v, int | float)}
    with result.checkpoint.as_directory() as folder:
        return TrainedModel(_keep(Path(folder) / CHECKPOINT, storage.parent / f"{name}.pt"), metrics)


def _on_driver_node() -> dict[str, Any]:
    """Options of an actor that runs on the driver's node, so that it survives the loss of every other node."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    return {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(here, soft=False)}


def _storage(where: AnyPath) -> dict[str, Any]:
    """Fields of Ray's `RunConfig`."""
    # with only a URI Ray would open the store itself: without our timeouts, and with keys in what it writes
    if isinstance(where, RemotePath):
        return {"storage_path": where.path, "storage_filesystem": where.filesystem}
    return {"storage_path": str(where)}


def _check_workers(recipe: Recipe, workers: int) -> None:
    size = recipe.training.batch_size
    if size % workers:
        raise UserError(f"training.batch_size {size} cannot be divided among {workers} workers: take a multiple")


@dataclass
class _Received:
    """Passes on the metrics that workers send, keeps their first failure, and stops the run when it is told to."""

    log: Log
    stopped: threading.Event
    failure: Failure | None = field(default=None)
    controller: Controller | None = field(default=None)

    def stop_if_told(self) -> None:
        import ray

        if self.stopped.is_set() and self.controller is not None:
            ray.kill(self.controller.actor)
            self.controller = None

    def take(self, item: Any) -> None:
        if isinstance(item, Controller):
            self.controller = item
        elif isinstance(item, Failure):
            self.failure = self.failure or item
        else:
            self.log(*item)


@contextmanager
def _draining(queue: Any, received: _Received) -> Iterator[None]:
    """Empty the queue from a thread until the block ends."""
    from ray.util.queue import Empty

    done = threading.Event()
    failures: list[Exception] = []

    def drain() -> None:
        while True:
            try:
                received.stop_if_told()
                if done.is_set() and queue.empty():
                    return
                item = queue.get(timeout=0.5)
            except Empty:
                continue
            except Exception as error:  # the queue's actor is lost, or Ray is shut down
                failures.append(error)
                return
            try:
                received.take(item)
            except Exception as error:  # a tracker's failure must not stop the training; it is raised at the end
                failures.append(error)

    thread = threading.Thread(target=drain, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=DRAIN_SECONDS)
        queue.shutdown()
    if failures:
        first = failures[0]
        raise RuntimeError(f"{len(failures)} reports of the training could not be logged: {first}") from first


def _remove_superseded(last: Any) -> None:
    """Remove the run's other checkpoints: Ray Train forgets one that a kill kept from its record of the run."""
    from pyarrow.fs import FileSelector, FileType

    folder = last.path.rpartition("/")[0]
    with suppress(OSError):  # what stays costs space only
        for each in last.filesystem.get_file_info(FileSelector(folder)):
            if (
                each.type == FileType.Directory
                and each.base_name.startswith("checkpoint_")
                and each.path != last.path
            ):
                last.filesystem.delete_dir(each.path)


def _keep(source: Path, target: Path) -> Path:
    with replacing(target) as temporary:
        shutil.copyfile(source, temporary)
    return target
