"""One recipe, two ways to run it: in this process, and under Ray Train on a streamed Ray Data shard.

Both build the same trainer and feed it the same batches; they differ in the `Reporter` and in where the
batches come from.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from siclip.checkpoints.formats import load_model
from siclip.config import ModelConfig
from siclip.data.batch import Batch
from siclip.evaluation.evaluate import evaluate
from siclip.models.clip import Clip, count_parameters
from siclip.models.registry import model_config
from siclip.training.block_regression import check_blocks, fit_blocks
from siclip.training.loop import Reporter, Save, resume, train
from siclip.training.setup import make_trainer
from siclip.training.trainer import Trainer
from siclip_platform.recipe import Recipe
from siclip_platform.stream import Stream, shard_batches, validation_set

CHECKPOINT = "checkpoint.pt"
Log = Callable[[int, Mapping[str, float]], None]
"""(step, metrics) → somewhere: a tracker, a display."""


@dataclass(frozen=True)
class Prepared:
    """A recipe turned into things that compute."""

    trainer: Trainer
    stream: Stream
    evaluate: Callable[[Clip], dict[str, float]]

    def costs(self) -> dict[str, float]:
        """What the run is made of, in the units of the report's cost table."""
        model = self.trainer.model
        return {
            "cost/parameters_trainable": count_parameters(model, trainable=True),
            "cost/parameters_image": count_parameters(model.image_encoder),
            "cost/parameters_text": count_parameters(model.text_encoder),
            "cost/steps": self.trainer.config.steps,
        }


def check(recipe: Recipe, with_data: bool) -> None:
    """Build what a recipe names, and throw it away: the cheapest way to find out whether it fits.

    Raises:
        UserError: a file is missing or of the wrong kind, or the parts do not fit each other. Without a
            teacher's checkpoint the student's inheritance cannot be looked at, nor the data without
            ``with_data``.
    """
    model = recipe_model(recipe)
    if recipe.teacher or not (recipe.model.inherit or recipe.loss.needs_teacher):
        build_trainer(recipe)
    if with_data:
        Stream.of(recipe, model)
        validation_set(recipe, model)


def recipe_model(recipe: Recipe) -> ModelConfig:
    """The config of the model that a recipe trains.

    Raises:
        UserError: the name or a pattern is wrong.
    """
    student = recipe.model
    return model_config(
        student.name,
        image_sharing=student.image_sharing,
        text_sharing=student.text_sharing,
        image={"sasp": student.image_sasp.model_dump()},
        text={"sasp": student.text_sasp.model_dump()},
    )


def build_trainer(recipe: Recipe) -> Trainer:
    """The trainer of a recipe, its teacher loaded and inherited from.

    Raises:
        UserError: the teacher's checkpoint is missing or does not fit.
    """
    model = recipe_model(recipe)
    teacher = load_model(Path(recipe.teacher)) if recipe.teacher else None
    if recipe.model.block_regression_steps and teacher is not None:
        check_blocks(model, teacher.config)
    return make_trainer(
        model,
        recipe.loss,
        recipe.training,
        teacher=teacher,
        inherit_weights=recipe.model.inherit,
        freeze=recipe.model.freeze,
    )


def prepare(recipe: Recipe) -> Prepared:
    """Build everything a recipe names.

    Raises:
        UserError: a file is missing or of the wrong kind, or the parts do not fit each other.
    """
    trainer = build_trainer(recipe)
    config = trainer.model.config
    validation = validation_set(recipe, config)

    def validate(model: Clip) -> dict[str, float]:
        metrics = evaluate(model, validation, device=trainer.device)
        return {f"validation/{name}": value for name, value in metrics.items()}

    return Prepared(trainer, Stream.of(recipe, config), validate)


def start_blocks(recipe: Recipe, prepared: Prepared, reporter: Reporter) -> None:
    """Block regression on the first batches of the run's own stream; nothing for a run that goes on."""
    steps, size = recipe.model.block_regression_steps, recipe.training.batch_size
    trainer = prepared.trainer
    if not steps or trainer.step or not recipe.teacher:
        return
    teacher = load_model(Path(recipe.teacher)).to(trainer.device)
    batches = prepared.stream.batches(size, 0, steps * size)
    losses = fit_blocks(trainer.model, teacher, batches, precision=recipe.training.precision)
    reporter.log(0, {"train/block_regression_first": losses[0], "train/block_regression_last": losses[-1]})


def run_in_process(recipe: Recipe, reporter: Reporter) -> dict[str, float]:
    """Train here, on batches read here; returns the costs."""
    started = time.perf_counter()
    prepared = prepare(recipe)

    def batches(start: int, stop: int) -> Iterator[Batch]:
        return prepared.stream.batches(recipe.training.batch_size, start, stop)

    costs = prepared.costs()
    reporter.log(0, costs)
    start_blocks(recipe, prepared, reporter)
    train(prepared.trainer, batches, reporter, prepared.evaluate)
    return costs | {"cost/seconds": time.perf_counter() - started}


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
    from_first = shard_batches(ray.train.get_dataset_shard("train"), batch_size)
    prepared = prepare(recipe)
    checkpoint = ray.train.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as folder:
            resume(prepared.trainer, Path(folder) / CHECKPOINT)

    def batches(start: int, stop: int) -> Iterator[Batch]:
        return islice(from_first, start // batch_size, None)

    reporter = _TrainReporter(config["queue"], prepared.costs())
    start_blocks(recipe, prepared, reporter)
    train(prepared.trainer, batches, reporter, prepared.evaluate)


def run_with_ray_train(
    recipe: Recipe, *, name: str, storage: Path, log: Log, worker_cpus: float = 1.0
) -> TrainedModel:
    """Train on one Ray Train worker (with a GPU where the cluster has one), fed by a Ray Data stream.

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
    config = model_config(recipe.model.name)
    stream = Stream.of(recipe, config)
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
        datasets={"train": stream.ray_dataset(0, recipe.training.steps * recipe.training.batch_size)},
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
