"""Ray Tune's schedulers on our own ``step``, and the budgets at which they may stop a trial."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from siclip.errors import UserError
from siclip_platform.search.ledger.journal import Journal
from siclip_platform.search.study import StudyPlan
from siclip_platform.spaces.definition import SearchSpace
from siclip_platform.spaces.policy import SchedulerConfig

STEP = "step"


class Hyperband(AsyncHyperBandScheduler):
    """Asynchronous successive halving in brackets, each with a first rung ``reduction_factor`` times later.

    A trial's bracket is drawn with Tune's odds from a seed, so that the same study stops the same trials.
    """

    def __init__(self, *, seed: int, **options: Any) -> None:
        super().__init__(**options)
        self._random = np.random.default_rng(seed)

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        sizes = np.array([len(bracket._rungs) for bracket in self._brackets])
        odds = np.e ** (sizes - sizes.max())
        chosen = self._random.choice(len(self._brackets), p=odds / odds.sum())
        self._trial_info[trial.trial_id] = self._brackets[chosen]


def make_scheduler(config: SchedulerConfig, space: SearchSpace, *, steps: int, seed: int = 0) -> TrialScheduler:
    """The scheduler of a study whose trials have ``steps``; one object serves one study.

    Raises:
        UserError: several objectives with early stopping, or ``min_steps`` is not below ``steps``.
    """
    if config.name in ("none", "pbt"):  # a population's turns are its conductor's
        return FIFOScheduler()
    if space.objectives:
        raise UserError(
            f"space {space.name!r} has several objectives and scheduler {config.name} stops trials by one figure: "
            "choose scheduler none"
        )
    first = first_rung(config, steps)
    common: dict[str, Any] = {"time_attr": STEP, "metric": space.metric, "mode": space.mode}
    if config.name == "median":
        return MedianStoppingRule(grace_period=first, min_samples_required=config.min_trials, **common)
    halving = {"max_t": steps, "grace_period": first, "reduction_factor": config.reduction_factor}
    if config.name == "asha":
        return AsyncHyperBandScheduler(**common, **halving)
    return Hyperband(seed=seed, brackets=len(rungs(config, steps)), **common, **halving)


def first_rung(config: SchedulerConfig, steps: int) -> int:
    """Steps before which no trial is stopped.

    Raises:
        UserError: they leave nothing to stop.
    """
    halvings = 2 if config.name == "hyperband" else 1
    first = config.min_steps or max(1, steps // config.reduction_factor**halvings)
    if first >= steps:
        raise UserError(
            f"scheduler {config.name}: min_steps {first} leaves none of a trial's {steps} steps to save; lower it, "
            "or choose none"
        )
    return first


def rungs(config: SchedulerConfig, steps: int) -> list[int]:
    """The budgets, in steps, at which a trial may be stopped, and its whole budget last.

    A trial is judged at its first evaluation at or after a rung. The median rule judges at every evaluation from its
    first budget on.
    """
    if config.name == "none":
        return [steps]
    budgets = [first_rung(config, steps)]
    while config.name != "median" and budgets[-1] * config.reduction_factor < steps:
        budgets.append(budgets[-1] * config.reduction_factor)
    return [*budgets, steps]


def rung_of(budgets: list[int], step: int) -> int | None:
    """The rung at which a trial that ended at ``step`` was judged last; None before the first."""
    return max((budget for budget in budgets if budget <= step), default=None)


@dataclass
class _Past:
    """As much of a Tune trial as asynchronous successive halving looks at."""

    trial_id: str
    config: dict[str, Any] = field(default_factory=dict)


def replay_into(plan: StudyPlan, journal: Journal) -> None:
    """Give ASHA the results of the trials that are over, in the order in which they came.

    Those in flight report theirs again. The median rule begins anew with the trials that remain.
    """
    if not isinstance(plan.scheduler, AsyncHyperBandScheduler):
        return
    past = {entry.name: _Past(entry.name, dict(entry.values)) for entry in journal.finished()}
    for trial in past.values():
        plan.scheduler.on_trial_add(None, trial)
    for name, index in journal.sequence:
        if name in past:
            step, means, _ = journal.entries[name].results[index]
            plan.scheduler.on_trial_result(None, past[name], {"step": step, "training_iteration": index + 1, **means})
    for entry in journal.finished():
        last = {"step": entry.steps, "training_iteration": len(entry.results), **entry.last}
        if entry.results:
            plan.scheduler.on_trial_complete(None, past[entry.name], last)
