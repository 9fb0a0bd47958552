"""A recipe under Ray Train, fed by a Ray Data stream: the second of the two ways to run it.

It builds the trainer of `siclip_platform.trainer` and feeds it the same batches; the `Reporter` differs, and where
the batches come from.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from siclip.data.batch import Batch
from siclip.training.loop import Save, resume, train
from siclip_platform.recipe import Recipe
from siclip_platform.stream import Stream, shard_batches
from siclip_platform.trainer import CHECKPOINT, Log, prepare, recipe_model, start_blocks


@dataclass(frozen=True)
class TrainedModel:
    """The outcome of a run under Ray Train."""

    checkpoint: Path
    metrics: dict[str, float]


class _TrainReporter:
    """Reports to Ray Train, and every figure at once to the driver through a queue."""

    def __init__(self, queue: Any, costs: Mapping[str, float]) -> None:
        self.queue = queue
        self.costs = dict(costs)
        self.started = time.perf_counter()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.queue.put((step, dict(metrics)))

    def milestone(self, step: int, metrics: Mapping[str, float], save: Save | None) -> None:
        import ray.train

        costs = self.costs | {"cost/seconds": time.perf_counter() - self.started}
        self.queue.put((step, dict(metrics)))
        if save is None:
            ray.train.report({"step": step, **metrics, **costs})
            return
        with tempfile.TemporaryDirectory() as folder:
            save(Path(folder) / CHECKPOINT)
            checkpoint = ray.train.Checkpoint.from_directory(folder)
            ray.train.report({"step": step, **metrics, **costs}, checkpoint=checkpoint)


def _train_worker(config: dict[str, Any]) -> None:
    import ray.train

    recipe = Recipe.model_validate_json(config["recipe"])
    batch_size = recipe.training.batch_size
    from_first = None
    if not recipe.data.trunk_cache:  # reading starts at once, while the model is built
        from_first = shard_batches(ray.train.get_dataset_shard("train"), batch_size)
    prepared = prepare(recipe)
    checkpoint = ray.train.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as folder:
            resume(prepared.trainer, Path(folder) / CHECKPOINT)

    def batches(start: int, stop: int) -> Iterator[Batch]:
        if from_first is None:
            return prepared.stream.batches(batch_size, start, stop)
        return islice(from_first, start // batch_size, None)

    reporter = _TrainReporter(config["queue"], prepared.costs())
    start_blocks(recipe, prepared, reporter)
    train(prepared.trainer, batches, reporter, prepared.evaluate)


def run_with_ray_train(
    recipe: Recipe, *, name: str, storage: Path, log: Log, worker_cpus: float = 1.0
) -> TrainedModel:
    """Train on one Ray Train worker (with a GPU where the cluster has one), fed by a Ray Data stream.

    With a trunk cache there is no image to decode: the worker reads the stored features itself.

    Needs a connected Ray. A run of the same name in the same storage goes on from its last checkpoint.

    Raises:
        RuntimeError: the training failed; the message is the worker's.
    """
    import ray
    from ray.data import ExecutionOptions
    from ray.train import CheckpointConfig, DataConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.util.queue import Queue

    use_gpu = ray.cluster_resources().get("GPU", 0) >= 1
    resources = {"CPU": worker_cpus} | ({"GPU": 1} if use_gpu else {})
    queue = Queue(actor_options={"num_cpus": 0})
    datasets = {}
    if not recipe.data.trunk_cache:
        stream = Stream.of(recipe, recipe_model(recipe))
        datasets["train"] = stream.ray_dataset(0, recipe.training.steps * recipe.training.batch_size)
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={"recipe": recipe.model_dump_json(), "queue": queue},
        scaling_config=ScalingConfig(num_workers=1, use_gpu=use_gpu, resources_per_worker=resources),
        run_config=RunConfig(
            name=name,
            storage_path=str(storage),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            failure_config=FailureConfig(max_failures=2, controller_failure_limit=3),
        ),
        datasets=datasets,
        dataset_config=DataConfig(execution_options=ExecutionOptions(preserve_order=True)),
    )
    with _draining(queue, log):
        result = trainer.fit()
    if result.error is not None:
        raise RuntimeError(f"training {name} failed: {result.error}")
    metrics = {k: float(v) for k, v in (result.metrics or {}).items() if isinstance(v, int | float)}
    with result.checkpoint.as_directory() as folder:
        return TrainedModel(_keep(Path(folder) / CHECKPOINT, storage.parent / f"{name}.pt"), metrics)


@contextmanager
def _draining(queue: Any, log: Log) -> Iterator[None]:
    """Pass what arrives in the queue on to ``log``, from a thread of its own, until the block ends."""
    from ray.util.queue import Empty

    done = threading.Event()
    failures: list[Exception] = []

    def drain() -> None:
        while not (done.is_set() and queue.empty()):
            try:
                log(*queue.get(timeout=0.5))
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
