"""A study: Ray Tune runs a search space's trials in reused processes, under ASHA, with Optuna's suggestions."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune import Callback, RunConfig, TuneConfig
from ray.tune.schedulers import ASHAScheduler

from siclip.training.loop import Save
from siclip_platform.display import Task
from siclip_platform.errors import UserError
from siclip_platform.recipe import Recipe
from siclip_platform.search.definition import SearchSpace
from siclip_platform.search.searcher import make_searcher
from siclip_platform.tracking import State, TrackedRun, Tracker
from siclip_platform.trainer import run_in_process

REDUCTION = 3


@dataclass(frozen=True)
class TrialOutcome:
    """How one trial ended. ``value`` is the study's metric at ``steps``; NaN if the trial failed before."""

    trial_id: str
    values: dict[str, Any]
    recipe: Recipe
    state: State
    steps: int
    value: float
    seconds: float


@dataclass(frozen=True)
class StudyResult:
    """All trials of a study, in the order of their end."""

    metric: str
    mode: str
    trials: list[TrialOutcome]

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


class _TuneReporter:
    """Holds a trial's figures back until an evaluation and hands them to Tune together."""

    def __init__(self) -> None:
        self.history: list[tuple[int, dict[str, float]]] = []
        self.started = time.perf_counter()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.history.append((step, dict(metrics)))

    def milestone(self, step: int, metrics: Mapping[str, float], save: Save | None) -> None:
        if not metrics:
            return
        history, self.history = self.history, []
        seconds = time.perf_counter() - self.started
        tune.report({"step": step, "history": history, "cost/seconds": seconds, **metrics})


def _trial(values: dict[str, Any], recipe_json: str) -> None:
    recipe = Recipe.model_validate_json(recipe_json).updated(values)
    run_in_process(recipe, _TuneReporter())


class StudyCallback(Callback):
    """In the driver: writes each trial to MLflow as it goes and keeps the display up to date."""

    def __init__(
        self, space: SearchSpace, base: Recipe, tracker: Tracker, parent: TrackedRun, tags: Mapping[str, str],
        task: Task,
    ) -> None:  # fmt: skip
        self.space = space
        self.base = base
        self.tracker = tracker
        self.parent = parent
        self.tags = dict(tags)
        self.task = task
        self.runs: dict[str, TrackedRun] = {}
        self.results: dict[str, dict[str, Any]] = {}
        self.outcomes: list[TrialOutcome] = []

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune saves its callbacks; connections and displays stay in the driver

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if trial.trial_id in self.runs:
            return
        recipe = self.base.updated(trial.config)
        self.runs[trial.trial_id] = self.tracker.start(
            f"trial-{len(self.runs):03d}",
            "trial",
            params=recipe.flat(),
            tags={**self.tags, "trial": trial.trial_id, "recipe_hash": recipe.hash},
            parent=self.parent,
        )

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        run = self.runs[trial.trial_id]
        for step, metrics in result.pop("history", []):
            run.log(step, metrics)
        run.log(result["step"], _figures(result))
        self.results[trial.trial_id] = dict(result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        steps = self.results.get(trial.trial_id, {}).get("step", 0)
        value = self.results.get(trial.trial_id, {}).get(self.space.metric, math.nan)
        if not math.isfinite(value):
            self._end(trial, "failed", f"{self.space.metric} is {value} at step {steps}")
        elif steps < self.base.training.steps:
            self._end(trial, "pruned", f"stopped by ASHA after step {steps}")
        else:
            self._end(trial, "completed")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        error = trial.get_error() if hasattr(trial, "get_error") else None
        self._end(trial, "failed", _last_line(error))

    def _end(self, trial: Any, state: State, reason: str = "") -> None:
        result = self.results.get(trial.trial_id, {})
        outcome = TrialOutcome(
            trial_id=trial.trial_id,
            values=dict(trial.config),
            recipe=self.base.updated(trial.config),
            state=state,
            steps=result.get("step", 0),
            value=result.get(self.space.metric, math.nan),
            seconds=result.get("cost/seconds", math.nan),
        )
        self.outcomes.append(outcome)
        self.runs[trial.trial_id].finish(
            state, {"cost/steps": outcome.steps, "cost/seconds": outcome.seconds}, reason
        )
        self.task.update(len(self.outcomes), self._note())

    def _note(self) -> str:
        try:
            best = self.result().best.value
        except UserError:
            return "no trial has finished yet"
        return f"best {self.space.metric} {best:.3f}"

    def result(self) -> StudyResult:
        return StudyResult(self.space.metric, self.space.mode, self.outcomes)


def run_study(
    space: SearchSpace,
    base: Recipe,
    *,
    name: str,
    trials: int,
    seed: int,
    folder: Path,
    concurrent: int,
    worker_cpus: float,
    callback: StudyCallback,
) -> StudyResult:
    """Search ``space`` around the recipe ``base``; needs a connected Ray. The base itself is the first trial.

    Trials share the cluster's GPUs, ``concurrent`` to each, where it has any. They are compared at the evaluations
    of ``base.training``; ASHA may stop one from a third of its steps on.

    Raises:
        UserError: the recipe is not evaluated while it trains.
    """
    steps = base.training.steps
    if not base.training.evaluate_every:
        raise UserError("a search compares trials as they train: set training.evaluate_every above 0")
    searcher = make_searcher(
        space,
        seed=seed,
        num_trials=trials,
        max_steps=steps,
        study_name=name,
        storage=folder / "optuna.db",
        points_to_evaluate=[space.restrict(base.flat())],
    )
    scheduler = ASHAScheduler(
        time_attr="step",
        metric=space.metric,
        mode=space.mode,
        max_t=steps,
        grace_period=max(1, steps // REDUCTION),
        reduction_factor=REDUCTION,
    )
    resources = {"CPU": worker_cpus}
    if ray.cluster_resources().get("GPU", 0) >= 1:
        resources["GPU"] = 1 / concurrent
    trainable = tune.with_resources(tune.with_parameters(_trial, recipe_json=base.model_dump_json()), resources)
    tuner = tune.Tuner(
        trainable,
        tune_config=TuneConfig(
            search_alg=searcher,
            scheduler=scheduler,
            num_samples=trials,
            max_concurrent_trials=concurrent,
            reuse_actors=True,
        ),
        run_config=RunConfig(name=name, storage_path=str(folder / "tune"), callbacks=[callback], verbose=0),
    )
    tuner.fit()
    return callback.result()


def _figures(result: Mapping[str, Any]) -> dict[str, float]:
    return {key: value for key, value in result.items() if key.startswith(("validation/", "cost/"))}


def _last_line(error: BaseException | None) -> str:
    lines = str(error).strip().splitlines() if error else []
    return lines[-1] if lines else "the trial's process ended without a message"
