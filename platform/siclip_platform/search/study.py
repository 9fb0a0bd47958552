"""The plan of a study: what its trials train, who suggests their settings and who stops them.

Searches and ablations run through the same `siclip_platform.search.tune_run.run_study`; their plans differ in the
searcher and the scheduler.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from siclip_platform.cluster.resources import Backend
from siclip_platform.recipes.recipe import Recipe
from siclip_platform.search.policy.population import Population


def _no_tags(values: Mapping[str, Any]) -> dict[str, str]:
    return {}


@dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """Everything that a study needs.

    A searcher is asked ``suggest("trial-000")``, ``suggest("trial-001")``, … and returns dotted recipe paths with
    values. Its suggestions may depend on its seed, the trial's name and the results reported to it, and on nothing
    else, so that a killed study resumes as if it had not been killed. After a restart it is asked again for trials
    that were in flight or whose end it may have missed; for a name that it knows it must return the same values. It
    gets the means over the seeds, with ``step``: each result once through ``on_trial_result(name, result)``, and the
    last one again in ``on_trial_complete(name, result, error)``.

    Attributes:
        name: the study's name.
        folder: where its journal, checkpoints and Optuna's database are.
        base: the starting recipe.
        metric: what is compared; more is better.
        trials: the number of trials, those of earlier starts included.
        searcher: a ready `ray.tune.search.Searcher`.
        scheduler: a ready `ray.tune.schedulers.TrialScheduler` on ``step`` with a metric and a mode; None runs every
            trial to its last step.
        population: the trials are its members. Their values change while they train, so a member has no identity
            and is never reused.
        seeds: seed runs per trial, with ``base.training.seed`` and the numbers after it. They advance together.
        concurrent: trials that run at the same time.
        resources: of one trial, as for `ray.tune.with_resources`.
        backend: ``process`` trains in the trial's process, ``train`` under Ray Train.
        worker_cpus: CPUs of a Ray Train worker.
        tags: further MLflow tags of a trial from its values, without the prefix.
        keep_checkpoints: completed trials whose checkpoints stay when the disk budget is exceeded.
        disk_budget: bytes for the checkpoints of all trials; None: no bound.
        run: one training; None: the recipe's own. See `siclip_platform.search.trial.trial.run_trial`.
    """

    name: str
    folder: Path
    base: Recipe
    metric: str
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
        """The recipe of a setting, with the given seed or the starting recipe's."""
        changed = dict(values) if seed is None else {**values, "training.seed": seed}
        return self.base.updated(changed)
