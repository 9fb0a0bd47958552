"""The report's statistics against scipy and statsmodels on fixed data, and against pure noise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import DescrStatsW

from siclip_platform.report.judge.pareto import pareto_front
from siclip_platform.report.judge.power_law import fit_power_law
from siclip_platform.report.judge.settings import compare_settings, level_with
from siclip_platform.report.judge.statistics import (
    bootstrap_interval,
    holm,
    independent_difference,
    paired_difference,
    seeds_needed,
    t_interval,
)
from siclip_platform.report.judge.winner import find_winner
from siclip_platform.report.read.runs import MEAN_RECALL, Run, Study

ONE = [0.412, 0.431, 0.405, 0.44, 0.418]
OTHER = [0.401, 0.411, 0.399, 0.409, 0.414]


def test_t_interval_is_that_of_statsmodels() -> None:
    found = t_interval([*ONE, math.nan, math.inf])
    low, high = DescrStatsW(ONE).tconfint_mean()
    assert (found.mean, found.low, found.high) == pytest.approx((np.mean(ONE), low, high))
    assert found.count == 5
    alone = t_interval([0.5])
    assert (alone.mean, alone.count) == (0.5, 1)
    assert math.isnan(alone.low)
    assert t_interval([]).count == 0


def test_paired_difference_is_that_of_scipy() -> None:
    """Seeds that only one side has finite are left out, in whatever order they come."""
    one = dict(enumerate(ONE)) | {7: 0.9, 8: math.nan}
    other = dict(reversed(list(enumerate(OTHER)))) | {8: 0.3, 9: 0.1}
    found = paired_difference(one, other)
    expected = stats.ttest_rel(ONE, OTHER)
    low, high = expected.confidence_interval()
    assert found is not None
    assert (found.mean, found.low, found.high, found.p) == pytest.approx(
        (np.mean(ONE) - np.mean(OTHER), low, high, expected.pvalue)
    )
    assert found.pairs == 5
    gaps = np.subtract(ONE, OTHER)
    correction = math.gamma(4 / 2) / (math.sqrt(4 / 2) * math.gamma(3 / 2))  # Hedges 1981, four degrees of freedom
    assert found.effect == pytest.approx(gaps.mean() / gaps.std(ddof=1) * correction)
    assert paired_difference({0: 1.0}, {1: 1.0}) is None


def test_differences_without_a_spread_have_no_p() -> None:
    """Three seeds that all shift by one sample of forty are no proof; equal runs are equal."""
    same = paired_difference({seed: seed / 40 + 0.025 for seed in range(3)}, {seed: seed / 40 for seed in range(3)})
    assert same is not None
    assert math.isnan(same.p)
    equal = paired_difference({0: 0.3, 1: 0.7}, {0: 0.3, 1: 0.7})
    assert equal is not None
    assert (equal.mean, equal.p) == (0, 1)
    single = paired_difference({0: 0.3}, {0: 0.1})
    assert single is not None
    assert math.isnan(single.p) and math.isnan(single.low)


@pytest.mark.parametrize("other", [OTHER, OTHER[:2], OTHER[:1]])
def test_independent_difference_is_that_of_scipy(other: list[float]) -> None:
    found = independent_difference(ONE, other)
    expected = stats.ttest_ind(ONE, other)
    low, high = expected.confidence_interval() if len(other) > 1 else (None, None)
    assert found is not None
    if len(other) > 1:
        assert (found.p, found.low, found.high) == pytest.approx((expected.pvalue, low, high))
    else:  # a prediction interval for one value: s² (1 + 1/n)
        half = stats.t.ppf(0.975, 4) * np.std(ONE, ddof=1) * math.sqrt(1 + 1 / 5)
        assert found.high - found.mean == pytest.approx(half)
    assert independent_difference([0.1], [0.2]).p != independent_difference([0.1], [0.2]).p  # NaN
    assert independent_difference([], ONE) is None


def test_holm_is_that_of_statsmodels() -> None:
    generator = np.random.default_rng(4)
    for count in (1, 2, 5, 20, 30):
        p_values = (generator.random(count) ** 3).round(3).tolist()  # with ties
        assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1].tolist())


def test_holm_counts_what_is_not_known() -> None:
    adjusted = holm([0.01, math.nan, 0.04])
    assert adjusted[0] == pytest.approx(0.03)
    assert math.isnan(adjusted[1])
    assert adjusted[2] == pytest.approx(0.08)
    with pytest.raises(ValueError, match="not all between 0 and 1"):
        holm([1.5])


@pytest.mark.parametrize(("size", "alpha"), [(0.5, 0.05), (1.0, 0.05), (2.0, 0.01), (0.3, 0.0026)])
def test_seeds_needed_is_that_of_statsmodels(size: float, alpha: float) -> None:
    expected = TTestPower().solve_power(effect_size=size, alpha=alpha, power=0.8)
    assert seeds_needed(size, alpha) == math.ceil(expected)
    assert seeds_needed(-size, alpha) == math.ceil(expected)
    assert seeds_needed(0.01) is None
    assert seeds_needed(0.0) is None


def test_bootstrap_covers_a_known_mean() -> None:
    generator = np.random.default_rng(1)
    found = [bootstrap_interval(generator.normal(3, 1, 25).tolist(), np.median, resamples=300) for _ in range(60)]
    assert sum(each.low <= 3 <= each.high for each in found) >= 51
    assert math.isnan(bootstrap_interval([1.0, 2.0], np.median).low)


def test_power_law_is_the_regression_of_scipy_and_its_interval_covers() -> None:
    generator = np.random.default_rng(0)
    sizes = [1e3, 3e3, 1e4, 3e4, 1e5]
    covered = 0
    for index in range(40):
        errors = {size: (5 * size**-0.3 * np.exp(generator.normal(0, 0.05, 3))).tolist() for size in sizes}
        law = fit_power_law(errors, resamples=400, seed=index)
        assert law is not None
        x = np.log([size for size in sizes for _ in range(3)])
        expected = stats.linregress(x, np.log([error for size in sizes for error in errors[size]]))
        assert (law.exponent, law.scale) == pytest.approx((-expected.slope, math.exp(expected.intercept)))
        covered += law.low <= 0.3 <= law.high
        low, high = law.interval(1e6)
        assert low < law.at(1e6) < high
    assert covered >= 33
    assert fit_power_law({1e3: [0.5, 0.4], 1e4: [0.3]}) is None


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=25))
def test_pareto_front_holds_what_nothing_beats(points: list[tuple[float, float]]) -> None:
    front = set(pareto_front(points))
    for index, (cost, gain) in enumerate(points):
        beaten = any(c <= cost and g >= gain and (c, g) != (cost, gain) for c, g in points)
        assert (index in front) is not beaten


def noise_study(generator: np.random.Generator, count: int, seeds: int, fresh: int = 0) -> Study:
    """Settings of one distribution: a mean shared by all at a seed, and noise of their own. With ``fresh`` seeds the
    luckiest setting is repeated beside the baseline."""
    shared = dict(enumerate(generator.normal(0.4, 0.02, seeds + fresh)))

    def run(kind: str, name: str, seed: int) -> Run:
        value = shared[seed] + generator.normal(0, 0.01)
        tags = {"siclip.setting": name, "siclip.seed": str(seed)}
        return Run(
            run_id=f"{kind}{name}{seed}", name=name, kind=kind, state="completed", tags=tags,
            metrics={MEAN_RECALL: value},
        )  # fmt: skip

    trials = tuple(run("trial", f"s{index}", seed) for index in range(count) for seed in range(seeds))
    frame = Run(run_id="study", name="noise", kind="study", state="completed", tags={"siclip.baseline": "s0"})
    study = Study(run=frame, experiment="", type="ablation", trials=trials)
    if not fresh:
        return study
    means = {row.setting.name: row.estimate.mean for row in compare_settings(study) if row.setting.name != "s0"}
    lucky = max(means, key=means.__getitem__)
    again = tuple(run("confirm", name, seed) for name in ("s0", lucky) for seed in range(seeds, seeds + fresh))
    return Study(run=frame, experiment="", type="ablation", trials=trials, confirms=again)


@pytest.mark.parametrize("seeds", [3, 5])
def test_noise_has_no_winner(seeds: int) -> None:
    """20 settings of one distribution: at most 5 % of 200 studies call one better than the baseline."""
    generator = np.random.default_rng(2026)
    rows = [compare_settings(noise_study(generator, 20, seeds)) for _ in range(200)]
    assert sum(any(row.verdict == "better" for row in found) for found in rows) <= 10
    uncorrected = [any(row.difference and row.difference.p < 0.05 for row in found) for found in rows]
    assert sum(uncorrected) > 40  # what would be called without the correction


def test_fresh_seeds_do_not_confirm_noise() -> None:
    generator = np.random.default_rng(7)
    found = [find_winner(noise_study(generator, 20, 3, fresh=5)) for _ in range(200)]
    assert sum(winner.status == "confirmed" for winner in found) <= 10
    assert all(winner.status in ("confirmed", "not confirmed", "contradicted") for winner in found)


def test_a_true_gain_is_found_and_confirmed() -> None:
    generator = np.random.default_rng(3)
    study = noise_study(generator, 4, 5, fresh=5)
    lucky = study.confirms[-1].label

    def lifted(runs: tuple[Run, ...]) -> tuple[Run, ...]:
        return tuple(
            Run(**{**vars(run), "metrics": {MEAN_RECALL: run.metrics[MEAN_RECALL] + 0.1 * (run.label == lucky)}})
            for run in runs
        )

    study = Study(**{**vars(study), "trials": lifted(study.trials), "confirms": lifted(study.confirms)})
    rows = {row.setting.name: row for row in compare_settings(study)}
    assert rows[lucky].verdict == "better"
    assert find_winner(study).status == "confirmed"
    assert level_with(study, lucky) == []
    assert level_with(noise_study(generator, 3, 5), "s1") == ["s2"]
    undecided = [row for row in rows.values() if row.verdict == "not distinguishable"]
    assert undecided and all("not distinguishable with 5 seeds: " in row.words for row in undecided)


def test_fresh_seeds_of_an_earlier_leader_do_not_count() -> None:
    """A search went on after its leader had been confirmed, and another trial leads now."""

    def run(kind: str, trial: str, value: float, seed: int, **tags: str) -> Run:
        named = {f"siclip.{key}": text for key, text in {"seed": str(seed), "best_trial": trial, **tags}.items()}
        named |= {"siclip.trial": trial} if kind == "trial" else {}
        return Run(run_id=f"{kind}{trial}{seed}{tags}", name=trial, kind=kind, state="completed", tags=named,
                   metrics={MEAN_RECALL: value})  # fmt: skip

    frame = Run(run_id="study", name="grown", kind="study", state="completed")
    fresh = [run("confirm", "a", 0.5 + seed / 1000, seed) for seed in (1, 2, 3)]
    rivals = [run("confirm", "a", 0.3 + seed / 900, seed, setting="baseline") for seed in (1, 2, 3)]
    trials = (run("trial", "a", 0.5, 0), run("trial", "b", 0.4, 0))
    study = Study(run=frame, experiment="", trials=trials, confirms=(*fresh, *rivals))
    assert (find_winner(study).status, find_winner(study).name) == ("confirmed", "a")
    grown = Study(**{**vars(study), "trials": (*trials, run("trial", "c", 0.6, 0))})
    assert (find_winner(grown).status, find_winner(grown).name) == ("not repeated", "c")
    again = [run("confirm", "c", 0.3 + seed / 800, seed) for seed in (1, 2, 3)]
    again += [run("confirm", "c", 0.4 + seed / 900, seed, setting="baseline") for seed in (1, 2, 3)]
    assert find_winner(Study(**{**vars(grown), "confirms": (*study.confirms, *again)})).status == "contradicted"


def test_seeds_of_the_selection_confirm_nothing() -> None:
    """A confirmation with a seed that the study used is the same run again."""
    study = noise_study(np.random.default_rng(5), 3, 3, fresh=3)
    reused = tuple(Run(**{**vars(run), "tags": {**run.tags, "siclip.seed": "0"}}) for run in study.confirms)
    assert not find_winner(Study(**{**vars(study), "confirms": reused})).fresh
