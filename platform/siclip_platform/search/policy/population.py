"""Population based training (arXiv 1711.09846): who takes over from whom at a turn, and how weights then change."""

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

FACTORS = (0.8, 1.25)
SCHEDULE = "loss.schedule"
TURNS = 4


@dataclass(frozen=True, kw_only=True)
class Population:
    """How a population is trained: from turn to turn, every ``interval`` optimizer steps.

    At a turn the worst ``quantile`` of the members each take over the training state and the schedule of one of the
    best ``quantile``, with weights changed from that step on. What happens follows from ``seed``, the step and the
    members' scores alone.
    """

    space: SearchSpace
    interval: int
    quantile: float
    resample: float
    seed: int

    def turn(self, step: int, scores: Mapping[str, float], settings: Mapping[str, Recipe]) -> dict[str, Takeover]:
        """The takeovers after ``step`` steps, by the member that takes over.

        ``scores``: the study's metric of every member that still trains, finite; ``settings``: its recipe.
        """
        sign = 1 if self.space.mode == "max" else -1
        ranked = sorted(scores, key=lambda name: (-sign * scores[name], name))
        count = min(math.ceil(len(ranked) * self.quantile), len(ranked) // 2)
        takeovers: dict[str, Takeover] = {}
        for name in ranked[len(ranked) - count :]:
            random = np.random.default_rng([self.seed, step, *name.encode()])
            parent = ranked[int(random.integers(count))]
            takeovers[name] = Takeover(parent, self._explored(settings[parent], step, random))
        return takeovers

    def _explored(self, recipe: Recipe, step: int, random: np.random.Generator) -> dict[str, float]:
        now = recipe.loss.at(step)
        return {
            parameter.path: draw(parameter, random)
            if random.random() < self.resample
            else changed(parameter, getattr(now, _term(parameter.path)), random)
            for parameter in self.space.parameters
        }


@dataclass(frozen=True)
class Takeover:
    """``parent``: whose training state is taken over; ``weights``: those from then on, by path."""

    parent: str
    weights: dict[str, float]

    def values(self, of_parent: Mapping[str, Any], step: int) -> dict[str, Any]:
        """A setting of the parent's with one more stage in its schedule."""
        stage = {"step": step, "weights": {_term(path): weight for path, weight in self.weights.items()}}
        return {**of_parent, SCHEDULE: [*of_parent.get(SCHEDULE, ()), stage]}


def _term(path: str) -> str:
    return path.removeprefix("loss.")


def draw(parameter: Parameter, random: np.random.Generator) -> float:
    """A value of the parameter, at random."""
    if parameter.distribution == "choice":
        return float(parameter.values[int(random.integers(len(parameter.values)))])  # type: ignore[arg-type]
    low, high = parameter.sample_values
    if parameter.distribution in LOG:
        return _inside(parameter, math.exp(random.uniform(math.log(low), math.log(high))))
    return _inside(parameter, random.uniform(low, high))


def changed(parameter: Parameter, value: float, random: np.random.Generator) -> float:
    """The value times 0.8 or 1.25, within the range and on its steps; of a choice one beside it."""
    up = bool(random.integers(2))
    if parameter.distribution == "choice":
        ordered = sorted(float(choice) for choice in parameter.values)  # type: ignore[arg-type]
        nearest = min(range(len(ordered)), key=lambda index: abs(ordered[index] - value))
        return ordered[min(max(nearest + (1 if up else -1), 0), len(ordered) - 1)]
    moved = _inside(parameter, value * FACTORS[up])
    stride = parameter.step or (1 if parameter.distribution in WHOLE else 0)
    if stride and abs(moved - value) < stride / 2:  # the next step is further away than a fifth or a quarter
        moved = _inside(parameter, value + (stride if up else -stride))
    return moved


def _inside(parameter: Parameter, value: float) -> float:
    low, high = parameter.sample_values
    stride = parameter.step or (1 if parameter.distribution in WHOLE else 0)
    if stride:
        value = low + round((value - low) / stride) * stride
    return float(min(max(value, low), high))


def turn_steps(config: SchedulerConfig, training: TrainingConfig) -> list[int]:
    """The steps after which there is a turn, and a trial's last step.

    Raises:
        UserError: there is none, or at a turn nothing is known of how good the members are.
    """
    steps, every = training.steps, training.evaluate_every
    interval = config.perturbation_interval or max(every, steps // TURNS // max(every, 1) * every)
    if not 0 < interval < steps:
        raise UserError(
            f"scheduler pbt: perturbation_interval {interval} leaves no turn in a trial's {steps} steps; lower it"
        )
    if not every or interval % every:
        raise UserError(
            f"scheduler pbt: members are evaluated every {every} steps, so not at every turn, which comes after "
            f"{interval}; set perturbation_interval to a multiple of training.evaluate_every"
        )
    return [*range(interval, steps, interval), steps]


def make_population(space: SearchSpace, base: Recipe, *, trials: int, seed: int, backend: str) -> Population:
    """The population that a space with scheduler ``pbt`` asks for.

    Raises:
        UserError: it is of one member, its trainings keep checkpoints of their own, or as `turn_steps`.
    """
    config = space.scheduler
    if trials < 2:
        raise UserError(
            f"scheduler pbt: a population of {trials} has nothing to take over; set --trials to 2 or more"
        )
    if backend == "train":
        raise UserError(
            "scheduler pbt takes training states from one member to another, and under --backend train Ray Train "
            "keeps them to itself; choose --backend process"
        )
    interval = turn_steps(config, base.training)[0]
    return Population(space=space, interval=interval, quantile=config.quantile, resample=config.resample, seed=seed)
