"""The power law compared with scipy's regression, and the coverage of its interval."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from siclip_platform.report.judge.power_law import fit_power_law


def test_power_law_equals_scipy_and_its_interval_covers_the_truth() -> None:
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
    # Fewer than 33 of 40 intervals with 95 % coverage has a probability below one in a thousand.
    assert covered >= 33
    assert fit_power_law({1e3: [0.5, 0.4], 1e4: [0.3]}) is None
