"""The turns of a population: who takes over from whom, and how weights change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from siclip.errors import UserError
from siclip_platform.search.policy.population import changed, draw, make_population, turn_steps
from siclip_platform.spaces.definition import Parameter
from siclip_platform.spaces.policy import SchedulerConfig
from tests.support.population_parts import PATH, base, population, space


def test_the_worst_take_over_from_the_best_and_nobody_else_changes(tmp_path: Path) -> None:
    scores = {f"trial-{n:03d}": score for n, score in enumerate([0.5, 0.1, 0.9, 0.3, 0.2, 0.7])}
    recipes = {name: base(tmp_path).updated({PATH: 10.0 + n}) for n, name in enumerate(scores)}
    parents = set()
    for seed in range(20):
        takeovers = population(seed=seed).turn(4, scores, recipes)
        assert takeovers == population(seed=seed).turn(4, dict(reversed(scores.items())), recipes)
        assert sorted(takeovers) == ["trial-001", "trial-003", "trial-004"]  # 0.34 of 6, rounded up
        parents |= {takeover.parent for takeover in takeovers.values()}
    assert parents == {"trial-000", "trial-002", "trial-005"}
    assert len(population(quantile=0.5).turn(4, dict(list(scores.items())[:3]), recipes)) == 1


def test_weights_change_by_a_fifth_or_a_quarter_or_are_drawn_anew(tmp_path: Path) -> None:
    scores = {"trial-000": 1.0, "trial-001": 0.0}
    recipes = {name: base(tmp_path) for name in scores}

    def found(resample: float) -> list[float]:
        turns = [population(resample=resample, seed=seed).turn(4, scores, recipes) for seed in range(200)]
        return [turn["trial-001"].weights[PATH] for turn in turns]

    moved = found(0.0)
    assert set(moved) == {80.0, 125.0} and 60 < moved.count(80.0) < 140
    anew = np.log10(found(1.0))
    assert anew.min() >= 0 and anew.max() <= 3
    assert np.histogram(anew, bins=3, range=(0, 3))[0].min() > 45  # even by the logarithm
    assert 25 < sum(weight not in (80.0, 125.0) for weight in found(0.25)) < 75


@pytest.mark.parametrize(
    ("parameter", "value", "wanted"),
    [
        (Parameter(path=PATH, distribution="uniform", low=1.0, high=2.0), 1.9, {1.9 * 0.8, 2.0}),
        (Parameter(path=PATH, distribution="uniform", low=1.0, high=3.0, step=0.5), 1.5, {1.0, 2.0}),
        (Parameter(path=PATH, distribution="int_uniform", low=1, high=9, step=2), 5, {3.0, 7.0}),
        (Parameter(path=PATH, distribution="log_int_uniform", low=1, high=100), 40, {32.0, 50.0}),
        (Parameter(path=PATH, distribution="choice", values=(4.0, 1.0, 2.0)), 2.0, {1.0, 4.0}),
        (Parameter(path=PATH, distribution="choice", values=(1.0, 2.0)), 2.0, {1.0, 2.0}),
    ],
)
def test_changed_and_drawn_weights_could_have_been_suggested(
    parameter: Parameter, value: float, wanted: set[float]
) -> None:
    random = np.random.default_rng(0)
    moved = {changed(parameter, value, random) for _ in range(50)}
    assert sorted(moved) == pytest.approx(sorted(wanted))
    assert all(parameter.contains(each) for each in moved)
    drawn = {draw(parameter, random) for _ in range(300)}
    assert all(parameter.contains(each) for each in drawn)
    assert parameter.size > 10 or len(drawn) == parameter.size


def test_turns_lie_where_there_is_an_evaluation(tmp_path: Path) -> None:
    training = base(tmp_path).training
    assert turn_steps(SchedulerConfig(name="pbt"), training) == [2, 4, 6, 8, 10, 12]
    longer = training.model_copy(update={"steps": 50})
    assert turn_steps(SchedulerConfig(name="pbt"), longer) == [12, 24, 36, 48, 50]
    for interval, words in ((12, "leaves no turn"), (3, "not at every turn")):
        with pytest.raises(UserError, match=words):
            turn_steps(SchedulerConfig(name="pbt", perturbation_interval=interval), training)
    for options, words in (({"trials": 1}, "nothing to take over"), ({"backend": "train"}, "--backend process")):
        with pytest.raises(UserError, match=words):
            make_population(space(), base(tmp_path), **{"trials": 4, "seed": 0, "backend": "process"} | options)
