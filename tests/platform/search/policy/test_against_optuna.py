"""The searcher suggests what Optuna, used directly, suggests for the same sampler, seed and outcomes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from siclip_platform.metrics import METRICS
from siclip_platform.search.policy.searcher import StudySearch, make_searcher
from siclip_platform.spaces.definition import SearchSpace
from siclip_platform.spaces.parsing import parse_space
from siclip_platform.spaces.policy import SamplerConfig

METRIC = "validation/mean_recall@1"
MAX_STEPS, STARTUP, SEED = 40, 4, 5
SPACE = """\
name: t
metric: validation/mean_recall@1
parameters:
  training.learning_rate: {distribution: log_uniform, low: 1.0e-4, high: 1.0e-2}
  training.weight_decay: {distribution: uniform, low: 0, high: 1}
  loss.pair_matching: {distribution: choice, values: [0, 1]}
  loss.pair_head: {distribution: choice, values: [product, mlp], when: {loss.pair_matching: ">0"}}
"""
POINT = {"training.learning_rate": 2e-3, "training.weight_decay": 0.25}
PAPER = {"training.learning_rate": 1e-3, "training.weight_decay": 0.1, "loss.pair_matching": 0}
OBJECTIVES = "objectives: {cost/seconds: min}\n"
CONSTRAINTS = 'constraints: {cost/seconds: "<= 0.5"}\n'
Make = Callable[..., optuna.samplers.BaseSampler]


def define(trial: optuna.Trial) -> dict[str, Any]:
    """`SPACE`, written for Optuna by hand."""
    values: dict[str, Any] = {
        "training.learning_rate": trial.suggest_float("training.learning_rate", 1e-4, 1e-2, log=True),
        "training.weight_decay": trial.suggest_float("training.weight_decay", 0, 1),
        "loss.pair_matching": trial.suggest_categorical("loss.pair_matching", [0, 1]),
    }
    if values["loss.pair_matching"]:
        values["loss.pair_head"] = trial.suggest_categorical("loss.pair_head", ["product", "mlp"])
    return values


def tpe(seed: int) -> optuna.samplers.BaseSampler:
    options: dict[str, Any] = {"multivariate": True, "group": True, "constant_liar": True}
    return optuna.samplers.TPESampler(n_startup_trials=STARTUP, seed=seed, **options)


def gp(seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.GPSampler(n_startup_trials=STARTUP, seed=seed, warn_independent_sampling=False)


def cmaes(seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.CmaEsSampler(
        seed=seed,
        n_startup_trials=STARTUP,
        independent_sampler=tpe(seed),
        consider_pruned_trials=True,
        warn_independent_sampling=False,
    )


def random(seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.RandomSampler(seed=seed)


def outcome(number: int, values: dict[str, Any]) -> tuple[TrialState, list[tuple[int, float]], float]:
    """How a trial ends, its scores by step, and its seconds."""
    state = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED)[
        number % 5
    ]
    peak = -abs(math.log10(values["training.learning_rate"]) + 3) - values["loss.pair_matching"] / 4
    last = MAX_STEPS if state == TrialState.COMPLETE else 20
    return (
        state,
        [(step, peak * (1 + 10 / step)) for step in range(10, last + 1, 10)],
        values["training.weight_decay"],
    )


def suggested_by_optuna(make: Make, trials: int, parts: str) -> list[dict[str, Any]]:
    """Two trials at a time, each with a new sampler whose seed follows from the root and the trial's name."""
    directions = ["maximize", "minimize"] if parts == OBJECTIVES else ["maximize"]
    study = optuna.create_study(directions=directions, pruner=optuna.pruners.NopPruner())
    for point in (POINT, PAPER):  # a space's last starting point is the paper's defaults
        study.enqueue_trial(point)
    running: list[tuple[int, optuna.Trial, dict[str, Any]]] = []
    suggested = []
    for number in range(trials):
        root = np.random.SeedSequence([SEED, *f"trial-{number:03d}".encode()])
        study.sampler = make(int(root.generate_state(1)[0]))
        trial = study.ask()
        suggested.append(define(trial))
        running.append((number, trial, suggested[-1]))
        if len(running) == 2:
            end_in_optuna(study, *running.pop(0), parts)
    return suggested


def end_in_optuna(study: optuna.Study, number: int, trial: optuna.Trial, values: dict[str, Any], parts: str) -> None:
    state, scores, seconds = outcome(number, values)
    if parts != OBJECTIVES:
        for step, score in scores:
            trial.report(score, step)
    if parts == CONSTRAINTS:
        trial.set_constraint("cost/seconds", seconds - 0.5)
    last = [scores[-1][1], seconds] if parts == OBJECTIVES else [scores[-1][1]]
    study.tell(trial, last if state == TrialState.COMPLETE else None, state=state)


def suggested_by_searcher(make: Callable[[], StudySearch], trials: int, kill: bool) -> list[dict[str, Any]]:
    """With ``kill``, a new searcher on the same storage replaces the old one once per trial, at changing moments."""
    search = make()
    running: list[tuple[int, dict[str, Any]]] = []
    suggested = []
    for number in range(trials):
        values = search.suggest(f"trial-{number:03d}")
        if kill and number % 3 == 0:
            search = make()
            assert search.suggest(f"trial-{number:03d}") == values
        assert isinstance(values, dict)
        suggested.append(values)
        running.append((number, values))
        if len(running) < 2:
            continue
        ended, values = running.pop(0)
        state, scores, seconds = outcome(ended, values)
        results = [{"step": step, METRIC: score, "cost/seconds": seconds} for step, score in scores]
        for result in results:
            search.on_trial_result(f"trial-{ended:03d}", result)
        if kill and number % 3 == 1:
            search = make()
        search.on_trial_complete(f"trial-{ended:03d}", results[-1], error=state == TrialState.FAIL)
        if kill and number % 3 == 2:
            search = make()
    return suggested


@pytest.mark.parametrize(
    ("sampler", "make", "parts", "kill"),
    [
        ("tpe", tpe, "", False),
        ("tpe", tpe, "", True),
        ("tpe", tpe, OBJECTIVES, False),
        ("tpe", tpe, CONSTRAINTS, True),
        ("gp", gp, "", False),
        ("gp", gp, CONSTRAINTS, False),
        ("cmaes", cmaes, "", True),
        ("random", random, "", False),
    ],
)
def test_suggestions_are_those_of_optuna(tmp_path: Path, sampler: str, make: Make, parts: str, kill: bool) -> None:
    trials = 20 if sampler == "tpe" and not kill else 12
    space: SearchSpace = parse_space(SPACE + parts, "t.yaml", METRICS, None)
    options: dict[str, Any] = {
        "sampler": SamplerConfig.model_validate({"name": sampler, "startup_trials": STARTUP}),
        "points_to_evaluate": [POINT],
        "storage": tmp_path / "study.db" if kill else None,
    }

    def make_one() -> StudySearch:
        return make_searcher(space, seed=SEED, num_trials=30, max_steps=MAX_STEPS, study_name="s", **options)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        wanted = suggested_by_optuna(make, trials, parts)
    assert suggested_by_searcher(make_one, trials, kill) == wanted
