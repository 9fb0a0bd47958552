"""A study: Ray Tune runs the trials that a searcher suggests, under a scheduler, and a recorder writes them down.

Searches and ablations go through the same `run_study`; they differ in the searcher and the scheduler of the plan.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from siclip.errors import UserError
from siclip_platform.cluster.resources import Backend
from siclip_platform.recipes.recipe import Recipe
from siclip_platform.search.ledger.journal import Entry, TrialState
from siclip_platform.search.policy.population import Population


def _no_tags(values: Mapping[str, Any]) -> dict[str, str]:
    return {}


@dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """All that a study needs.

    ``searcher``: a ready `ray.tune.search.Searcher`. It is asked ``suggest("trial-000")``, ``suggest("trial-001")``,
    … and answers with dotted recipe paths and values. What it suggests may depend on its seed, the trial's number
    and what it was told, and on nothing else, so that a study that was killed goes on as if it had not been. After a
    restart it is asked again for the trials that were in flight, and for those whose end it may not have heard of:
    a name that its storage knows gets the values it was given then (a running trial is taken over; of a finished one
    further results and ends are ignored). ``on_trial_result(name, result)`` and ``on_trial_complete(name, result,
    error)`` give it the means over the seeds, with ``step``.

    ``scheduler``: a ready `ray.tune.schedulers.TrialScheduler` on ``step``, with its own metric and mode; None runs
    every trial to its end. ``population``: the trials are the members of one; a trial's values then change while it
    runs, so it has no identity and is never taken over.

    ``trials``: how many in all, with those of an earlier start. ``seeds``: trainings of each setting, with
    ``base.training.seed`` and the numbers after it; they advance together and their mean is what is told.
    ``resources``: of one trial, as `ray.tune.with_resources` takes them; ``worker_cpus``: of a worker under Ray
    Train. ``tags``: a trial's further MLflow tags (without the prefix) from its values. ``run``: what one training
    is, None for the recipe's own; see
    `siclip_platform.search.trial.trial`.
    """

    name: str
    folder: Path
    base: Recipe
    metric: str
    mode: str
    trials: int
    searcher: Any
    scheduler: Any = None
    population: Population | None = None
    seeds: int = 1
    concurrent: int = 1
    resources: Mapping[str, float] = field(default_factory=lambda: {"CPU": 1.0})
    backend: Backend = "process"
    worker_cpus: float = 1.0
    tags: Callable[[Mapping[str, Any]], Mapping[str, str]] = _no_tags
    keep_checkpoints: int = 3
    disk_budget: int | None = None
    run: Any = None

    @property
    def seed_numbers(self) -> tuple[int, ...]:
        first = self.base.training.seed
        return tuple(range(first, first + self.seeds))

    def recipe(self, values: Mapping[str, Any], seed: int | None = None) -> Recipe:
        """The recipe of a setting, with the base's seed or another one."""
        changed = dict(values) if seed is None else {**values, "training.seed": seed}
        return self.base.updated(changed)


@dataclass(frozen=True)
class TrialOutcome:
    """How one trial ended. ``value`` is the study's metric at ``steps``, the mean over seeds; NaN if it failed."""

    trial_id: str
    values: dict[str, Any]
    recipe: Recipe
    state: TrialState
    steps: int
    value: float
    seconds: float
    reason: str = ""
    checkpoint: Path | None = None


@dataclass(frozen=True)
class StudyResult:
    """All trials of a study that are over, in the order of their suggestion."""

    metric: str
    mode: str
    trials: list[TrialOutcome]
    interrupted: bool = False

    @property
    def best(self) -> TrialOutcome:
        """The best of the trials that ran to their last step.

        Raises:
            UserError: there is none.
        """
        done = [t for t in self.trials if t.state == "completed"]
        if not done:
            raise UserError("no trial of the study ran to its end: see the failed trials' siclip.reason in MLflow")
        sign = 1 if self.mode == "max" else -1
        return max(done, key=lambda trial: sign * trial.value)


def outcome(plan: StudyPlan, entry: Entry, checkpoint: Path | None = None) -> TrialOutcome:
    """A trial that is over, as the journal has it."""
    assert entry.state is not None
    return TrialOutcome(
        trial_id=entry.name,
        values=dict(entry.values),
        recipe=plan.recipe(entry.values),
        state=entry.state,
        steps=entry.steps,
        value=entry.last.get(plan.metric, math.nan),
        seconds=entry.seconds,
        reason=entry.reason,
        checkpoint=checkpoint,
    )
