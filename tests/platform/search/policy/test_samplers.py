"""Every sampler over spaces with conditions, several objectives and constraints; what it cannot search is refused."""

from __future__ import annotations

import itertools
import math
from statistics import median
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from ray.tune.search import Searcher

from siclip.errors import UserError
from siclip_platform.metrics import METRICS
from siclip_platform.search.policy.searcher import StudySearch, make_searcher, paper_point
from siclip_platform.spaces.definition import SearchSpace
from siclip_platform.spaces.finite import grid
from siclip_platform.spaces.parsing import parse_space
from siclip_platform.spaces.policy import SAMPLERS, SamplerConfig

METRIC = "validation/mean_recall@1"
HEAD = "name: t\nmetric: validation/mean_recall@1\nparameters:\n"
FINITE = """\
  loss.pair_matching: {distribution: choice, values: [0, 0.5, 1]}
  loss.pair_head: {distribution: choice, values: [product, mlp], when: {loss.pair_matching: ">0"}}
  training.warmup_steps: {distribution: int_uniform, low: 0, high: 10, step: 5}
"""
NUMERIC = """\
  training.learning_rate: {distribution: log_uniform, low: 1e-4, high: 1e-2}
  training.weight_decay: {distribution: uniform, low: 0, high: 1}
"""
CONDITIONAL = """\
  loss.pair_matching: {distribution: choice, values: [0, 1]}
  loss.pair_head: {distribution: choice, values: [product, mlp], when: {loss.pair_matching: ">0"}}
"""


def space_of(parameters: str, parts: str = "") -> SearchSpace:
    return parse_space(HEAD + parameters + parts, "t.yaml", METRICS, None)


def make(space: SearchSpace, sampler: str, trials: int = 12, **options: Any) -> StudySearch:
    config = SamplerConfig.model_validate({"name": sampler})
    return make_searcher(space, seed=0, num_trials=trials, max_steps=40, study_name="s", sampler=config, **options)


def suggestion(search: StudySearch, name: str) -> dict[str, Any]:
    values = search.suggest(name)
    assert isinstance(values, dict)
    return values


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "grid"])
def test_every_sampler_stays_inside_a_conditional_space(sampler: str) -> None:
    space = space_of(NUMERIC + CONDITIONAL)
    search = make(space, sampler)
    for number in range(12):
        values = suggestion(search, str(number))
        assert space.restrict(values) == values
        assert ("loss.pair_head" in values) == (values["loss.pair_matching"] > 0)
        search.on_trial_complete(str(number), {"step": 40 if number % 3 else 10, METRIC: number / 12})


@pytest.mark.parametrize("sampler", ["tpe", "gp", "cmaes"])
def test_samplers_that_learn_approach_the_best_setting(sampler: str) -> None:
    search = make(space_of(NUMERIC), sampler, trials=24)
    distances = []
    for number in range(30 if sampler != "gp" else 20):
        values = suggestion(search, str(number))
        rate, decay = values["training.learning_rate"], values["training.weight_decay"]
        distances.append(abs(math.log10(rate) + 3) + abs(decay - 0.5))
        search.on_trial_complete(str(number), {"step": 40, METRIC: -distances[-1]})
    assert median(distances[-8:]) < 0.6 * median(distances[1:9])  # the mean would punish a single far-off trial


def test_a_grid_is_every_setting_once() -> None:
    space = space_of(FINITE)
    heads = [(0.0, None), *itertools.product((0.5, 1.0), ("product", "mlp"))]
    expected = {(*head, warmup) for head in heads for warmup in (0, 5, 10)}
    search = make(space, "grid")
    drawn: list[tuple[Any, ...]] = []
    while isinstance(values := search.suggest(str(len(drawn))), dict):
        search.on_trial_complete(str(len(drawn)), {"step": 40, METRIC: 0.5})
        drawn.append((values["loss.pair_matching"], values.get("loss.pair_head"), values["training.warmup_steps"]))
    assert values == Searcher.FINISHED
    assert len(drawn) == len(set(drawn)) == 15 and set(drawn) == expected
    assert len(list(grid(space))) == 15
    assert drawn != sorted(drawn, key=str), "the order is random, so that a part of a grid is a sample of it"


@pytest.mark.parametrize(
    ("sampler", "parameters", "parts", "words"),
    [
        ("grid", NUMERIC, "", r"training.learning_rate, training.weight_decay of 't' a step"),
        ("grid", "  data.limit: {distribution: int_uniform, low: 1, high: 20000}\n", "", "more than 10,000"),
        ("cmaes", FINITE, "", "two or more numeric ranges without `when`"),
        ("cmaes", NUMERIC, "objectives: {cost/seconds: min}\n", "one objective"),
        ("cmaes", NUMERIC, 'constraints: {cost/seconds: "<= 9"}\n', "one objective without constraints"),
    ],
)
def test_a_space_that_a_sampler_cannot_search_is_refused(
    sampler: str, parameters: str, parts: str, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        make(space_of(parameters, parts), sampler)


@pytest.mark.parametrize("sampler", ["tpe", "gp", "random"])
def test_several_objectives(sampler: str) -> None:
    """Optuna's Pareto front is that of the reported values."""
    space = space_of(NUMERIC, "objectives: {cost/parameters_trainable: min}\n")
    search = make(space, sampler)
    reported = {}
    for number in range(10):
        decay = suggestion(search, str(number))["training.weight_decay"]
        search.on_trial_result(str(number), {"step": 20, METRIC: 0.0, "cost/parameters_trainable": 1.0})
        values = {METRIC: round(decay, 1), "cost/parameters_trainable": round(decay * decay, 1)}
        search.on_trial_complete(str(number), {"step": 40, **values})
        reported[number] = tuple(values.values())
    front = {
        number
        for number, (score, cost) in reported.items()
        if not any(s >= score and c <= cost and (s, c) != (score, cost) for s, c in reported.values())
    }
    assert {trial.number for trial in search.study.best_trials} == front
    assert search.study.directions == [optuna.study.StudyDirection.MAXIMIZE, optuna.study.StudyDirection.MINIMIZE]


def test_states_of_trials_with_several_objectives() -> None:
    space = space_of(NUMERIC, "objectives: {cost/seconds: min}\n")
    search = make(space, "tpe")
    for name in ("whole", "stopped", "lacks one", "error", "nan"):
        search.suggest(name)
    search.on_trial_complete("whole", {"step": 40, METRIC: 0.5, "cost/seconds": 3.0})
    search.on_trial_complete("stopped", {"step": 20, METRIC: 0.5, "cost/seconds": 3.0})
    search.on_trial_complete("lacks one", {"step": 40, METRIC: 0.5})
    search.on_trial_complete("error", error=True)
    search.on_trial_complete("nan", {"step": 40, METRIC: math.nan, "cost/seconds": 3.0})
    states = {trial.user_attrs["trial_id"]: trial.state for trial in search.study.trials if trial.user_attrs}
    assert states == {
        "whole": TrialState.COMPLETE,
        "stopped": TrialState.PRUNED,
        "lacks one": TrialState.FAIL,
        "error": TrialState.FAIL,
        "nan": TrialState.FAIL,
    }
    assert search.study.trials[0].values == [0.5, 3.0]


@pytest.mark.parametrize(("sampler", "startup", "trials"), [("tpe", 10, 36), ("gp", 5, 14)])
def test_constraints_reach_optuna_and_steer_the_sampler(sampler: str, startup: int, trials: int) -> None:
    """Without the bound the best value is at 1; with it the sampler approaches the bound."""
    space = space_of(NUMERIC, 'constraints: {cost/seconds: "<= 0.3"}\n')
    search = make(space, sampler, trials=3 * startup)
    decays = []
    for number in range(trials):
        decays.append(suggestion(search, str(number))["training.weight_decay"])
        search.on_trial_complete(str(number), {"step": 40, METRIC: decays[-1], "cost/seconds": decays[-1]})
    for trial, decay in zip(search.study.trials, decays, strict=True):
        assert trial.constraints == {"cost/seconds": pytest.approx(decay - 0.3)}
    assert search.study.best_trial.value == max(decay for decay in decays if decay <= 0.3)
    first, last = decays[1 : startup + 1], decays[-startup:]
    assert sum(abs(decay - 0.3) for decay in last) < 0.7 * sum(abs(decay - 0.3) for decay in first)


def test_a_trial_without_its_constrained_metric_fails() -> None:
    search = make(space_of(NUMERIC, 'constraints: {cost/seconds: "<= 0.3"}\n'), "tpe")
    search.suggest("a")
    search.on_trial_complete("a", {"step": 40, METRIC: 0.5})
    assert search.study.trials[0].state == TrialState.FAIL


def test_points_of_the_space_come_before_the_papers_defaults() -> None:
    space = space_of(NUMERIC, "points: [{training.learning_rate: 2e-3, training.weight_decay: 0.2}]\n")
    search = make(space, "random", points_to_evaluate=[{"training.learning_rate": 5e-3, "training.weight_decay": 0}])
    rates = [suggestion(search, str(number))["training.learning_rate"] for number in range(3)]
    assert rates == [5e-3, 2e-3, paper_point(space)["training.learning_rate"]]
