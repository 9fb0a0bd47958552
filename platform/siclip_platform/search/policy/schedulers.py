"""Ray Tune's schedulers on our own ``step``, and the rungs at which they may stop a trial."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.random import mtrand
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from siclip.errors import UserError
from siclip_platform.cluster.ray_patches import put_in_bracket
from siclip_platform.spaces.definition import SearchSpace
from siclip_platform.spaces.policy import SchedulerConfig

STEP = "step"


class Hyperband(AsyncHyperBandScheduler):
    """Asynchronous successive halving in brackets; each one's first rung is ``reduction_factor`` times later.

    A trial's bracket is drawn from ``seed`` with Ray Tune's probabilities, so the same study stops the same trials.

    Attributes:
        given_back: brackets of trials that were lost; the next trials that are added get them.
    """

    def __init__(self, *, seed: int, **options: Any) -> None:
        super().__init__(**options)
        self._bits = np.random.default_rng(seed).bit_generator
        self.given_back: list[Any] = []

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        if self.given_back:
            put_in_bracket(self, trial, self.given_back.pop(0))
            return
        # Tune draws the bracket from numpy's global generator, which nothing seeds.
        shared = mtrand.get_bit_generator()
        mtrand.set_bit_generator(self._bits)
        try:
            super().on_trial_add(tune_controller, trial)
        finally:
            mtrand.set_bit_generator(shared)


def make_scheduler(config: SchedulerConfig, space: SearchSpace, *, steps: int, seed: int = 0) -> TrialScheduler:
    """The scheduler of a study whose trials have ``steps``; one object serves one study.

    Raises:
        UserError: several objectives with early stopping, or ``min_steps`` is not below ``steps``.
    """
    if config.name in ("none", "pbt"):  # a population's conductor ends its generations
        return FIFOScheduler()
    if space.objectives:
        raise UserError(
            f"space {space.name!r} has several objectives and scheduler {config.name} stops trials by one metric: "
            "choose scheduler none"
        )
    first = first_rung(config, steps)
    common: dict[str, Any] = {"time_attr": STEP, "metric": space.metric, "mode": "max"}
    if config.name == "median":
        return MedianStoppingRule(grace_period=first, min_samples_required=config.min_trials, **common)
    halving = {"max_t": steps, "grace_period": first, "reduction_factor": config.reduction_factor}
    if config.name == "asha":
        return AsyncHyperBandScheduler(**common, **halving)
    return Hyperband(seed=seed, brackets=len(rungs(config, steps)), **common, **halving)


def first_rung(config: SchedulerConfig, steps: int) -> int:
    """The step before which no trial is stopped.

    Raises:
        UserError: it is not below ``steps``, so no trial could be stopped.
    """
    # Hyperband needs two rungs before the last step: with one, its brackets would not differ.
    halvings = 2 if config.name == "hyperband" else 1
    first = config.min_steps or max(1, steps // config.reduction_factor**halvings)
    if first >= steps:
        raise UserError(
            f"scheduler {config.name}: min_steps {first} leaves none of a trial's {steps} steps to save; lower it, "
            "or choose none"
        )
    return first


def rungs(config: SchedulerConfig, steps: int) -> list[int]:
    """The steps at which a trial may be stopped, and its last step.

    A trial is judged at its first evaluation at or after a rung. The median rule judges at every evaluation from its
    first rung on.
    """
    if config.name == "none":
        return [steps]
    found = [first_rung(config, steps)]
    while config.name != "median" and found[-1] * config.reduction_factor < steps:
        found.append(found[-1] * config.reduction_factor)
    return [*found, steps]
