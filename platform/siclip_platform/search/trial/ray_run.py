"""One seed of a trial under Ray Train: a controller and workers of its own, which end with the trial's process."""

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

_Figures = tuple[int, Mapping[str, float]]


def train_with_ray(
    recipe: Recipe, reporter: Reporter, checkpoint: Path | None, *, storage: str, worker_cpus: float
) -> None:
    """A `Run` of `siclip_platform.search.trial.seed_run`.

    The same recipe in the same ``storage`` goes on from its last checkpoint.

    ``checkpoint`` is not looked at: Ray Train keeps its own while the training runs, and the trial gets the last one.
    The trial's process must not be reused: what is stopped in the middle ends with it.
    """
    from siclip_platform.training.ray_train import TrainedModel, run_with_ray_train

    told: queue.SimpleQueue[_Figures | BaseException | TrainedModel] = queue.SimpleQueue()

    def work() -> None:
        try:
            trained = run_with_ray_train(
                recipe,
                name=recipe.hash,
                storage=Path(storage),
                log=lambda step, metrics: told.put((step, metrics)),
                worker_cpus=worker_cpus,
            )
            told.put(trained)
        except BaseException as error:
            told.put(error)

    threading.Thread(target=work, daemon=True, name="ray-train").start()
    while not isinstance(figures := told.get(), TrainedModel):
        if isinstance(figures, BaseException):
            raise figures
        step, metrics = figures
        if not _evaluated(metrics):
            reporter.log(step, metrics)
        elif step < recipe.training.steps:
            reporter.milestone(step, metrics, None)
    source = figures.checkpoint
    reporter.milestone(recipe.training.steps, _evaluated(figures.metrics), lambda path: _move(source, path))
    shutil.rmtree(Path(storage) / recipe.hash, ignore_errors=True)


def _evaluated(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name.startswith("validation/")}


def _move(source: Path, target: Path) -> None:
    shutil.move(source, target)
