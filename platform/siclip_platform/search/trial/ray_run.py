"""One seed of a trial under Ray Train, with its own controller and workers, which end with the trial's process."""

from __future__ import annotations

import queue
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from siclip_platform.recipes.recipe import Recipe

if TYPE_CHECKING:
    from siclip.training.loop import Reporter

_Report = tuple[int, Mapping[str, float]]


def train_with_ray(
    recipe: Recipe, reporter: Reporter, checkpoint: Path | None, *, storage: str, worker_cpus: float
) -> None:
    """A `Run` of `siclip_platform.search.trial.seed_run` under Ray Train.

    The same recipe in the same ``storage`` resumes from its last checkpoint. The trial's process must not be reused:
    the thread of a stopped training ends only with the process.

    Args:
        recipe: what to train.
        reporter: receives metrics and milestones.
        checkpoint: not used: Ray Train has its own checkpoints; the last one is moved to the trial at the end.
        storage: the folder for Ray Train's state.
        worker_cpus: CPUs of the worker.
    """
    from siclip_platform.training.ray_train import TrainedModel, run_with_ray_train

    reports: queue.SimpleQueue[_Report | BaseException | TrainedModel] = queue.SimpleQueue()

    def work() -> None:
        try:
            trained = run_with_ray_train(
                recipe,
                name=recipe.hash,
                storage=Path(storage),
                log=lambda step, metrics: reports.put((step, metrics)),
                worker_cpus=worker_cpus,
            )
            reports.put(trained)
        except BaseException as error:
            reports.put(error)

    # In a thread, because the reporter blocks between milestones and Ray Train must not wait for it.
    threading.Thread(target=work, daemon=True, name="ray-train").start()
    while not isinstance(report := reports.get(), TrainedModel):
        if isinstance(report, BaseException):
            raise report
        step, metrics = report
        if not _evaluated(metrics):
            reporter.log(step, metrics)
        # The last milestone is reported below, with the checkpoint that exists only once Ray Train has ended.
        elif step < recipe.training.steps:
            reporter.milestone(step, metrics, None)
    source = report.checkpoint
    reporter.milestone(recipe.training.steps, _evaluated(report.metrics), lambda path: _move(source, path))
    shutil.rmtree(Path(storage) / recipe.hash, ignore_errors=True)


def _evaluated(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name.startswith("validation/")}


def _move(source: Path, target: Path) -> None:
    shutil.move(source, target)
