"""A fake training that takes no time, and the other parts of a study, for tests of studies."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow.entities import Run
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import Searcher

from siclip_platform.recipes.recipe import DataConfig, Recipe, StudentConfig
from siclip_platform.search.study import StudyPlan
from siclip_platform.tracking import Tracker

METRIC = "validation/mean_recall@1"
STEPS, EVERY = 8, 2
CRASH, NAN, OOM, OOM_ALWAYS = 0.91, 0.92, 0.93, 0.94


def base_recipe(data: Path, **training: Any) -> Recipe:
    return Recipe(
        data=DataConfig(path=str(data)),
        model=StudentConfig(name="mobileclip-nano", inherit=False),
        loss={"feature_distillation": 0, "contrastive_relational": 0, "interactive_contrastive": 0},
        training={
            "steps": STEPS,
            "batch_size": 8,
            "warmup_steps": 1,
            "evaluate_every": EVERY,
            "checkpoint_every": 0,
            "precision": "fp32",
        }
        | training,
    )


def score(weight_decay: float, seed: int, step: int) -> float:
    return weight_decay * (1 - 0.5 ** (step / 2)) + 0.01 * seed


def pretend(recipe: Recipe, reporter: Any, checkpoint: Path | None) -> None:
    """Report `score` at each evaluation; some weight decays crash, run out of memory or diverge."""
    decay, training = recipe.training.weight_decay, recipe.training
    first = int(checkpoint.read_text()) if checkpoint else 0
    reporter.log(0, {"train/first": float(first)})
    for step in range(first + 1, training.steps + 1):
        reporter.log(step, {"train/loss": 1.0 / step})
        if CRASH <= decay < NAN and step == 3:
            os._exit(1)
        if (decay == OOM and training.micro_batch_size == 0 and step == 5) or (decay == OOM_ALWAYS and step == 3):
            raise MemoryError("no room for 12 GiB")
        value = score(decay, training.seed, step)
        if decay == NAN and step >= 4:
            value = math.nan
        time.sleep(float(os.environ.get("PRETEND_SECONDS", "0")))
        while Path(os.environ.get("PRETEND_HOLD", os.devnull)).is_file():
            time.sleep(0.05)
        if step % training.evaluate_every == 0:
            saves = training.checkpoint_every and step % training.checkpoint_every == 0
            save = (lambda path, at=step: path.write_text(str(at))) if saves or step == training.steps else None
            reporter.milestone(step, {METRIC: value, "validation/other": 2 * value}, save)


class InOrder(Searcher):
    """Suggests weight decays in their order; counts and keeps what is reported to it."""

    def __init__(self, weight_decays: list[float]) -> None:
        super().__init__(metric=METRIC, mode="max")
        self.weight_decays = weight_decays
        self.results: list[tuple[str, int]] = []
        self.completed: dict[str, tuple[Mapping[str, Any] | None, bool]] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        number = int(trial_id.rpartition("-")[2])
        if number >= len(self.weight_decays):
            return Searcher.FINISHED
        return {"training.weight_decay": self.weight_decays[number]}

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        self.results.append((trial_id, result["step"]))

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        assert trial_id not in self.completed
        self.completed[trial_id] = (result, error)

    def save(self, checkpoint_path: str) -> None:
        raise AssertionError("a study has its own journal")

    def restore(self, checkpoint_path: str) -> None:
        raise AssertionError("a study has its own journal")


def plan(folder: Path, data: Path, weight_decays: list[float], **more: Any) -> StudyPlan:
    base = more.pop("base", None) or base_recipe(data)
    given = {"searcher": InOrder(weight_decays), "trials": len(weight_decays), "run": pretend} | more
    return StudyPlan(name="study", folder=folder, base=base, metric=METRIC, **given)


def asha() -> ASHAScheduler:
    return ASHAScheduler(time_attr="step", metric=METRIC, mode="max", max_t=STEPS, grace_period=2, reduction_factor=2)


def curve(tracker: Tracker, run: Run, key: str) -> dict[int, float]:
    points = tracker.client.get_metric_history(run.info.run_id, key)
    assert len({point.step for point in points}) == len(points)
    return {point.step: point.value for point in points}


class Held:
    """In place of a training's tensors; counts its instances in this process."""

    alive = 0

    def __init__(self) -> None:
        Held.alive += 1

    def __del__(self) -> None:
        Held.alive -= 1


def hold_memory(recipe: Recipe, reporter: Any, checkpoint: Path | None) -> None:
    """As `pretend`, but with an object that lives as long as the run; reports how many lived before it."""
    import sys

    counter = sys.modules.setdefault("siclip_test_held", Held)  # type: ignore[arg-type]
    reporter.log(0, {"train/held_before": float(counter.alive), "train/process": float(os.getpid())})
    held = counter()
    pretend(recipe, reporter, checkpoint)
    del held
