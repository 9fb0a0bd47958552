"""A power law of error against dataset size, with the uncertainty of its exponent."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from siclip_platform.report.judge.statistics import CONFIDENCE


@dataclass(frozen=True)
class PowerLaw:
    """error = ``scale`` · size^−``exponent``, fitted to the logarithms.

    Attributes:
        low: Lower end of the exponent's 95 % bootstrap interval.
        high: Its upper end.
        sizes: Number of distinct sizes in the fit.
        draws: (scale, exponent) of every bootstrap sample.
    """

    scale: float
    exponent: float
    low: float
    high: float
    sizes: int
    draws: tuple[tuple[float, float], ...]

    def at(self, size: float) -> float:
        """The fitted error at a size."""
        return self.scale * math.pow(size, -self.exponent)

    def interval(self, size: float) -> tuple[float, float]:
        """95 % percentile interval of the fitted error at a size, over the bootstrap samples."""
        import numpy as np

        found = [scale * size**-exponent for scale, exponent in self.draws]
        low, high = np.quantile(found, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        return float(low), float(high)


def fit_power_law(
    errors: Mapping[float, Sequence[float]], *, resamples: int = 1000, seed: int = 0
) -> PowerLaw | None:
    """Fit a power law by least squares on log error against log size; None with fewer than three sizes.

    The interval comes from a residual bootstrap: each sample adds resampled residuals to the fitted values, so it
    covers both the noise between seeds and the misfit of the law.

    Args:
        errors: Size → error of each seed.
        resamples: Number of bootstrap samples.
        seed: Seed of the resampling, so that a report of the same runs is the same.
    """
    import numpy as np

    points = [
        (math.log(size), math.log(error))
        for size, found in sorted(errors.items())
        for error in found
        if size > 0 and math.isfinite(error) and error > 0
    ]
    x, y = np.array([p[0] for p in points]), np.array([p[1] for p in points])
    sizes = len(set(x.tolist()))
    # Two sizes determine the line exactly, so nothing would be left to judge its fit by.
    if sizes < 3:
        return None
    slope, offset = np.polyfit(x, y, 1)
    fitted = offset + slope * x
    # Two fitted parameters shrink the residuals: n / (n - 2) restores their variance.
    residuals = (y - fitted) * math.sqrt(len(y) / max(len(y) - 2, 1))
    generator = np.random.default_rng(seed)
    drawn = [np.polyfit(x, fitted + generator.choice(residuals, len(y)), 1) for _ in range(resamples)]
    low, high = np.quantile([-draw[0] for draw in drawn], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    draws = tuple((float(math.exp(draw[1])), float(-draw[0])) for draw in drawn)
    return PowerLaw(float(math.exp(offset)), float(-slope), float(low), float(high), sizes, draws)
