"""Population based training (arXiv 1711.09846): which members copy which, and how their loss weights change."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from siclip.config import TrainingConfig
from siclip.errors import UserError
from siclip_platform.recipes.recipe import Recipe
from siclip_platform.spaces.definition import LOG, WHOLE, Parameter, SearchSpace
from siclip_platform.spaces.policy import SchedulerConfig

FACTORS = (0.8, 1.25)  # the paper has 0.8 and 1.2; 1.25 undoes 0.8
SCHEDULE = "loss.schedule"
GENERATIONS = 4


@dataclass(frozen=True, kw_only=True)
class Population:
    """How a population trains: in generations of ``interval`` optimizer steps.

    At the end of a generation each of the worst ``quantile`` of the members copies the training state and the
    schedule of one of the best ``quantile``, and its weights change from that step on. The outcome depends only on
    ``seed``, the step and the members' scores.

    Attributes:
        space: the loss weights that are searched.
        interval: steps of a generation.
        quantile: the share of members that copy another one.
        resample: the probability that a weight is drawn again instead of being multiplied by 0.8 or 1.25.
        seed: of all draws.
    """

    space: SearchSpace
    interval: int
    quantile: float
    resample: float
    seed: int

    def end_generation(
        self, step: int, scores: Mapping[str, float], settings: Mapping[str, Recipe]
    ) -> dict[str, Copy]:
        """The copies after ``step`` steps, by the member that copies.

        Args:
            step: the last step of the generation.
            scores: the study's metric of each member that is still training; finite.
            settings: the recipe of each.
        """
        # Names break ties, so that the order of the scores does not matter.
        ranked = sorted(scores, key=lambda name: (-scores[name], name))
        # At most half, so that no member is copied and replaced at once.
        count = min(math.ceil(len(ranked) * self.quantile), len(ranked) // 2)
        copies: dict[str, Copy] = {}
        for name in ranked[len(ranked) - count :]:
            # A generator per member: its draws do not depend on which others copy.
            random = np.random.default_rng([self.seed, step, *name.encode()])
            parent = ranked[int(random.integers(count))]
            copies[name] = Copy(parent, self._explore(settings[parent], step, random))
        return copies

    def _explore(self, recipe: Recipe, step: int, random: np.random.Generator) -> dict[str, float]:
        now = recipe.loss.at(step)
        return {
            parameter.path: draw(parameter, random)
            if random.random() < self.resample
            else perturb(parameter, getattr(now, _term(parameter.path)), random)
            for parameter in self.space.parameters
        }


@dataclass(frozen=True)
class Copy:
    """A member copies the training state of ``parent`` and continues with ``weights``, by path."""

    parent: str
    weights: dict[str, float]

    def values(self, of_parent: Mapping[str, Any], step: int) -> dict[str, Any]:
        """The parent's setting with one more stage in its schedule."""
        stage = {"step": step, "weights": {_term(path): weight for path, weight in self.weights.items()}}
        return {**of_parent, SCHEDULE: [*of_parent.get(SCHEDULE, ()), stage]}


def _term(path: str) -> str:
    return path.removeprefix("loss.")


def draw(parameter: Parameter, random: np.random.Generator) -> float:
    """A random value of the parameter."""
    if parameter.distribution == "choice":
        return float(parameter.values[int(random.integers(len(parameter.values)))])  # type: ignore[arg-type]
    low, high = parameter.sample_values
    if parameter.distribution in LOG:
        return _clip(parameter, math.exp(random.uniform(math.log(low), math.log(high))))
    return _clip(parameter, random.uniform(low, high))


def perturb(parameter: Parameter, value: float, random: np.random.Generator) -> float:
    """The value times 0.8 or 1.25, within the range and on its steps; of a choice, a neighbouring value."""
    up = bool(random.integers(2))
    if parameter.distribution == "choice":
        ordered = sorted(float(choice) for choice in parameter.values)  # type: ignore[arg-type]
        nearest = min(range(len(ordered)), key=lambda index: abs(ordered[index] - value))
        return ordered[min(max(nearest + (1 if up else -1), 0), len(ordered) - 1)]
    moved = _clip(parameter, value * FACTORS[up])
    stride = parameter.step or (1 if parameter.distribution in WHOLE else 0)
    if stride and abs(moved - value) < stride / 2:  # rounding to the steps undid the change
        moved = _clip(parameter, value + (stride if up else -stride))
    return moved


def _clip(parameter: Parameter, value: float) -> float:
    """The nearest value that the parameter can have."""
    low, high = parameter.sample_values
    stride = parameter.step or (1 if parameter.distribution in WHOLE else 0)
    if stride:
        value = low + round((value - low) / stride) * stride
    return float(min(max(value, low), high))


def generation_ends(config: SchedulerConfig, training: TrainingConfig) -> list[int]:
    """The steps at which generations end; the last one is a trial's last step.

    Raises:
        UserError: a trial has only one generation, or the end of a generation is not an evaluation.
    """
    steps, every = training.steps, training.evaluate_every
    # By default a generation is about a quarter of a trial, rounded down to whole evaluations.
    interval = config.perturbation_interval or max(every, steps // GENERATIONS // max(every, 1) * every)
    if not 0 < interval < steps:
        raise UserError(
            f"scheduler pbt: with perturbation_interval {interval} a trial of {steps} steps has only one generation: "
            "lower it"
        )
    if not every or interval % every:
        raise UserError(
            f"scheduler pbt: members are evaluated every {every} steps, so not at the end of every generation of "
            f"{interval} steps; set perturbation_interval to a multiple of training.evaluate_every"
        )
    return [*range(interval, steps, interval), steps]


def make_population(space: SearchSpace, base: Recipe, *, trials: int, seed: int, backend: str) -> Population:
    """The population of a space with scheduler ``pbt``.

    Raises:
        UserError: fewer than two members, a backend that does not share training states, or see `generation_ends`.
    """
    config = space.scheduler
    if trials < 2:
        raise UserError(f"scheduler pbt: a population of {trials} has no member to copy; set --trials to at least 2")
    if backend == "train":
        raise UserError(
            "scheduler pbt copies training states between members, and under --backend train Ray Train keeps them to "
            "itself; choose --backend process"
        )
    interval = generation_ends(config, base.training)[0]
    return Population(space=space, interval=interval, quantile=config.quantile, resample=config.resample, seed=seed)
