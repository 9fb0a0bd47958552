"""The end of a generation: which members copy which, and how weights change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from siclip.errors import UserError
from siclip_platform.search.policy.population import draw, generation_ends, make_population, perturb
from siclip_platform.spaces.definition import Parameter
from siclip_platform.spaces.policy import SchedulerConfig
from tests.support.population_parts import PATH, base, population, space


def test_the_worst_copy_the_best_and_no_other_member_changes(tmp_path: Path) -> None:
    scores = {f"trial-{n:03d}": score for n, score in enumerate([0.5, 0.1, 0.9, 0.3, 0.2, 0.7])}
    recipes = {name: base(tmp_path).updated({PATH: 10.0 + n}) for n, name in enumerate(scores)}
    parents = set()
    for seed in range(20):
        copies = population(seed=seed).end_generation(4, scores, recipes)
        assert copies == population(seed=seed).end_generation(4, dict(reversed(scores.items())), recipes)
        assert sorted(copies) == ["trial-001", "trial-003", "trial-004"]  # 0.34 of 6, rounded up
        parents |= {copy.parent for copy in copies.values()}
    assert parents == {"trial-000", "trial-002", "trial-005"}
    assert len(population(quantile=0.5).end_generation(4, dict(list(scores.items())[:3]), recipes)) == 1


def test_weights_are_perturbed_or_drawn_again(tmp_path: Path) -> None:
    scores = {"trial-000": 1.0, "trial-001": 0.0}
    recipes = {name: base(tmp_path) for name in scores}

    def found(resample: float) -> list[float]:
        ends = [population(resample=resample, seed=seed).end_generation(4, scores, recipes) for seed in range(200)]
        return [copies["trial-001"].weights[PATH] for copies in ends]

    moved = found(0.0)
    assert set(moved) == {80.0, 125.0} and 60 < moved.count(80.0) < 140
    drawn = np.log10(found(1.0))
    assert drawn.min() >= 0 and drawn.max() <= 3
    assert np.histogram(drawn, bins=3, range=(0, 3))[0].min() > 45  # even by the logarithm
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
def test_perturbed_and_drawn_weights_could_have_been_suggested(
    parameter: Parameter, value: float, wanted: set[float]
) -> None:
    random = np.random.default_rng(0)
    moved = {perturb(parameter, value, random) for _ in range(50)}
    assert sorted(moved) == pytest.approx(sorted(wanted))
    assert all(parameter.contains(each) for each in moved)
    drawn = {draw(parameter, random) for _ in range(300)}
    assert all(parameter.contains(each) for each in drawn)
    assert parameter.size > 10 or len(drawn) == parameter.size


def test_generations_end_at_evaluations(tmp_path: Path) -> None:
    training = base(tmp_path).training
    assert generation_ends(SchedulerConfig(name="pbt"), training) == [2, 4, 6, 8, 10, 12]
    longer = training.model_copy(update={"steps": 50})
    assert generation_ends(SchedulerConfig(name="pbt"), longer) == [12, 24, 36, 48, 50]
    for interval, words in ((12, "only one generation"), (3, "not at the end of every generation")):
        with pytest.raises(UserError, match=words):
            generation_ends(SchedulerConfig(name="pbt", perturbation_interval=interval), training)
    for options, words in (({"trials": 1}, "no member to copy"), ({"backend": "train"}, "--backend process")):
        with pytest.raises(UserError, match=words):
            make_population(space(), base(tmp_path), **{"trials": 4, "seed": 0, "backend": "process"} | options)
