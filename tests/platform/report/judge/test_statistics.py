"""The report's statistics compared with scipy and statsmodels on fixed data."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import DescrStatsW

from siclip_platform.report.judge.statistics import (
    holm,
    independent_difference,
    paired_difference,
    seeds_needed,
    t_interval,
)

ONE = [0.412, 0.431, 0.405, 0.44, 0.418]
OTHER = [0.401, 0.411, 0.399, 0.409, 0.414]


def test_t_interval_equals_statsmodels() -> None:
    found = t_interval([*ONE, math.nan, math.inf])
    low, high = DescrStatsW(ONE).tconfint_mean()
    assert (found.mean, found.low, found.high) == pytest.approx((np.mean(ONE), low, high))
    assert found.count == 5
    alone = t_interval([0.5])
    assert (alone.mean, alone.count) == (0.5, 1)
    assert math.isnan(alone.low)
    assert t_interval([]).count == 0


def test_paired_difference_equals_scipy() -> None:
    """Seeds at which only one side has a finite value are ignored, in any order."""
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
    # Hedges 1981, with four degrees of freedom.
    correction = math.gamma(4 / 2) / (math.sqrt(4 / 2) * math.gamma(3 / 2))
    assert found.effect == pytest.approx(gaps.mean() / gaps.std(ddof=1) * correction)
    assert paired_difference({0: 1.0}, {1: 1.0}) is None


def test_differences_without_spread_have_no_p() -> None:
    """The same shift by one sample of forty at three seeds is no proof; identical runs are equal."""
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
def test_independent_difference_equals_scipy(other: list[float]) -> None:
    found = independent_difference(ONE, other)
    expected = stats.ttest_ind(ONE, other)
    low, high = expected.confidence_interval() if len(other) > 1 else (None, None)
    assert found is not None
    if len(other) > 1:
        assert (found.p, found.low, found.high) == pytest.approx((expected.pvalue, low, high))
    else:
        # The prediction interval of one value: s² (1 + 1/n).
        half = stats.t.ppf(0.975, 4) * np.std(ONE, ddof=1) * math.sqrt(1 + 1 / 5)
        assert found.high - found.mean == pytest.approx(half)
    single = independent_difference([0.1], [0.2])
    assert single is not None and math.isnan(single.p)
    assert independent_difference([], ONE) is None


def test_holm_equals_statsmodels() -> None:
    generator = np.random.default_rng(4)
    for count in (1, 2, 5, 20, 30):
        # Rounded, so that there are ties.
        p_values = (generator.random(count) ** 3).round(3).tolist()
        assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1].tolist())


def test_holm_counts_unknown_p_values() -> None:
    adjusted = holm([0.01, math.nan, 0.04])
    assert adjusted[0] == pytest.approx(0.03)
    assert math.isnan(adjusted[1])
    assert adjusted[2] == pytest.approx(0.08)
    with pytest.raises(ValueError, match="not all between 0 and 1"):
        holm([1.5])


@pytest.mark.parametrize(("size", "alpha"), [(0.5, 0.05), (1.0, 0.05), (2.0, 0.01), (0.3, 0.0026)])
def test_seeds_needed_equals_statsmodels(size: float, alpha: float) -> None:
    expected = TTestPower().solve_power(effect_size=size, alpha=alpha, power=0.8)
    assert seeds_needed(size, alpha) == math.ceil(expected)
    assert seeds_needed(-size, alpha) == math.ceil(expected)
    assert seeds_needed(0.01) is None
    assert seeds_needed(0.0) is None
