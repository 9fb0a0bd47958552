"""A population of fake trainings whose best weight falls from 100 to 10 while they train."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from siclip_platform.metrics import METRICS
from siclip_platform.recipes.recipe import Recipe
from siclip_platform.search.policy.population import Population
from siclip_platform.search.policy.searcher import make_searcher
from siclip_platform.spaces.definition import SearchSpace
from siclip_platform.spaces.parsing import parse_space
from tests.support import study_parts as parts

PATH = "loss.feature_distillation"
SPACE = """\
name: p
metric: validation/mean_recall@1
parameters:
  loss.feature_distillation: {distribution: log_uniform, low: 1, high: 1000}
scheduler: {name: pbt, perturbation_interval: 4, quantile: 0.34}
"""
STEPS = 12
CRASHES = 666.0


def space() -> SearchSpace:
    return parse_space(SPACE, "p.yaml", METRICS, None)


def population(**changes: Any) -> Population:
    return Population(**{"space": space(), "interval": 4, "quantile": 0.34, "resample": 0.25, "seed": 3} | changes)


def base(data: Path) -> Recipe:
    return parts.base_recipe(data, steps=STEPS, evaluate_every=2).updated({PATH: 100.0})


def gain(weight: float, step: int) -> float:
    best = 100 * 10 ** (-step / STEPS)
    return 1 - abs(math.log(weight / best)) / 10


def follow(recipe: Recipe, reporter: Any, checkpoint: Path | None) -> None:
    """A training whose state is the sum of its gains and the weights that it applied."""
    state = json.loads(checkpoint.read_text()) if checkpoint else {"level": 0.0, "applied": []}
    for step in range(len(state["applied"]), recipe.training.steps):
        weight = recipe.loss.at(step).feature_distillation
        if weight == CRASHES and step == 1:
            os._exit(1)
        state["level"] += gain(weight, step)
        state["applied"].append(weight)
        done = step + 1
        if done % recipe.training.evaluate_every == 0:
            text = json.dumps(state)
            often = recipe.training.checkpoint_every
            saves = (often and done % often == 0) or done == recipe.training.steps
            save = (lambda path, text=text: path.write_text(text)) if saves else None
            reporter.milestone(done, {parts.METRIC: state["level"]}, save)


def plan_of(folder: Path, data: Path, weights: list[float], **more: Any) -> Any:
    searcher = make_searcher(
        space(),
        seed=0,
        num_trials=len(weights),
        max_steps=STEPS,
        study_name="p",
        storage=folder / "optuna.db",
        points_to_evaluate=[{PATH: weight} for weight in weights],
    )
    given = {"base": base(data), "searcher": searcher, "trials": len(weights), "run": follow, "concurrent": 2}
    return parts.plan(folder, data, [], **{**given, "population": population(), **more})
