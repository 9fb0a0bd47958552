"""benchmarks/study_report.py: intervals, paired differences and Holm's correction, against scipy and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import study_report
from scipy import stats


def test_intervals_and_p_values_are_students() -> None:
    values = list(np.random.default_rng(0).normal(0.02, 0.05, size=5))
    ours, theirs = study_report.estimate(values), stats.ttest_1samp(values, 0)
    interval = theirs.confidence_interval(0.95)
    assert (ours.low, ours.high, ours.p) == pytest.approx((interval.low, interval.high, theirs.pvalue))
    assert ours.seeds == 5
    alone = study_report.estimate([0.3])
    assert alone.mean == 0.3 and np.isnan(alone.half) and np.isnan(alone.p)
    assert study_report.estimate([0.0, 0.0]).p == 1 and study_report.estimate([0.5, 0.5]).half == 0


def test_differences_are_paired_by_seed() -> None:
    one, other = {3: 0.5, 1: 0.31, 2: 0.4}, {1: 0.3, 2: 0.36, 3: 0.49}
    theirs = stats.ttest_rel([0.31, 0.4, 0.5], [0.3, 0.36, 0.49])
    interval = theirs.confidence_interval(0.95)
    ours = study_report.paired_difference(one, other)
    assert (ours.low, ours.high, ours.p) == pytest.approx((interval.low, interval.high, theirs.pvalue))
    with pytest.raises(ValueError, match="cannot be paired"):
        study_report.paired_difference(one, {1: 0.3, 2: 0.36})


def test_holm_steps_down() -> None:
    # By hand: 3 × 0.01 = 0.03, 2 × 0.03 = 0.06, and 1 × 0.04 raised to the previous value.
    assert study_report.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert study_report.holm([0.6, 0.7]) == [1.0, 1.0]
    with pytest.raises(ValueError, match="between 0 and 1"):
        study_report.holm([0.01, float("nan")])
