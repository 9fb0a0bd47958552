"""Statistics over seeds: intervals, paired differences, Holm's correction, effect sizes, seeds that would tell.

Seeds are the only replicates: an interval holds what the seed changes (weights, order, captions, negatives), not
what other data or another teacher would.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95
ALPHA = 1 - CONFIDENCE
POWER = 0.8
MAX_SEEDS = 1000
FAR = 6.0


@dataclass(frozen=True)
class Estimate:
    """A mean with its two-sided 95 % interval; with one value ``low`` and ``high`` are NaN, with none all are."""

    mean: float
    low: float
    high: float
    count: int

    @property
    def half(self) -> float:
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class Difference:
    """One group minus another: mean, 95 % interval, two-sided p against 0, and Hedges' g.

    ``pairs``: values in each group when paired, else the smaller group's number. NaN where it cannot be known: the
    interval, p and g of one pair, and p and g of differences that are all the same.
    """

    mean: float
    low: float
    high: float
    p: float
    effect: float
    pairs: int
    paired: bool


def finite(values: Sequence[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]


def t_interval(values: Sequence[float]) -> Estimate:
    """Mean and Student t interval of the finite values."""
    from scipy import stats

    kept = finite(values)
    count = len(kept)
    if not count:
        return Estimate(math.nan, math.nan, math.nan, 0)
    mean = math.fsum(kept) / count
    if count == 1:
        return Estimate(mean, math.nan, math.nan, 1)
    half = float(stats.t.ppf(1 - ALPHA / 2, count - 1)) * deviation(kept) / math.sqrt(count)
    return Estimate(mean, mean - half, mean + half, count)


def bootstrap_interval(
    values: Sequence[float], statistic: Callable[..., float], *, resamples: int = 2000, seed: int = 0
) -> Estimate:
    """``statistic`` of the finite values with its BCa bootstrap interval (scipy), for what is not a mean."""
    import numpy as np
    from scipy import stats

    kept = finite(values)
    if len(kept) < 3:
        return Estimate(float(statistic(kept)) if kept else math.nan, math.nan, math.nan, len(kept))
    found = stats.bootstrap(
        (np.asarray(kept),), statistic, n_resamples=resamples, confidence_level=CONFIDENCE, method="BCa",
        rng=np.random.default_rng(seed),
    )  # fmt: skip
    low, high = found.confidence_interval
    return Estimate(float(statistic(kept)), float(low), float(high), len(kept))


def deviation(values: Sequence[float]) -> float:
    """Sample standard deviation; 0 for values that differ by rounding alone."""
    mean = math.fsum(values) / len(values)
    found = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return 0.0 if found <= 1e-12 * max(1e-300, *map(abs, values)) else found


def paired_difference(one: Mapping[int, float], other: Mapping[int, float]) -> Difference | None:
    """``one`` − ``other`` over the seeds that both have finite; None without a common seed."""
    seeds = sorted(seed for seed in one.keys() & other.keys() if math.isfinite(one[seed] - other[seed]))
    if not seeds:
        return None
    gaps = [one[seed] - other[seed] for seed in seeds]
    # Subtracting leaves rounding of the operands' size, which must not pass for noise between seeds.
    scale = max(abs(value) for seed in seeds for value in (one[seed], other[seed]))
    found, count = t_interval(gaps), len(gaps)
    spread = deviation(gaps) if count > 1 else math.nan
    if count < 2 or spread <= 1e-12 * scale:
        equal = 1.0 if count > 1 and abs(found.mean) <= 1e-12 * scale else math.nan
        return Difference(found.mean, found.low, found.high, equal, math.nan, count, True)
    p = _two_sided(found.mean / (spread / math.sqrt(count)), count - 1)
    effect = found.mean / spread * _small_sample(count - 1)
    return Difference(found.mean, found.low, found.high, p, effect, count, True)


def independent_difference(one: Sequence[float], other: Sequence[float]) -> Difference | None:
    """``one`` − ``other``, not paired, with the pooled t test; None if either has no finite value."""
    from scipy import stats

    a, b = finite(one), finite(other)
    if not a or not b:
        return None
    gap = math.fsum(a) / len(a) - math.fsum(b) / len(b)
    freedom, pairs = len(a) + len(b) - 2, min(len(a), len(b))
    squares = sum(deviation(group) ** 2 * (len(group) - 1) for group in (a, b) if len(group) > 1)
    if not freedom or not squares:
        return Difference(gap, math.nan, math.nan, math.nan, math.nan, pairs, False)
    pooled = math.sqrt(squares / freedom)
    error = pooled * math.sqrt(1 / len(a) + 1 / len(b))
    half = float(stats.t.ppf(1 - ALPHA / 2, freedom)) * error
    effect = gap / pooled * _small_sample(freedom)
    return Difference(gap, gap - half, gap + half, _two_sided(gap / error, freedom), effect, pairs, False)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction; a p that is not known (NaN) stays so and still counts as a comparison.

    Raises:
        ValueError: a p outside 0 to 1.
    """
    if any(not 0 <= p <= 1 for p in p_values if not math.isnan(p)):
        raise ValueError(f"{p_values} are not all between 0 and 1")
    adjusted = [math.nan] * len(p_values)
    highest = 0.0
    known = [index for index, p in enumerate(p_values) if not math.isnan(p)]
    for rank, index in enumerate(sorted(known, key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def seeds_needed(standardized: float, alpha: float = ALPHA, power: float = POWER) -> int | None:
    """Pairs with which a paired t test finds a true difference of so many standard deviations of the difference.

    None if more than `MAX_SEEDS` would be needed.
    """
    from scipy import stats

    size = abs(standardized)
    if not math.isfinite(size) or size == 0:
        return None

    def enough(count: int) -> bool:
        """By the noncentral t distribution; its tail on the wrong side is left out, as it is below alpha / 2."""
        critical = float(stats.t.ppf(1 - alpha / 2, count - 1))
        shift = size * math.sqrt(count)
        if shift > critical + FAR:  # scipy has no figure that far out
            return True
        return bool(stats.nct.sf(critical, count - 1, shift) >= power)

    if not enough(MAX_SEEDS):
        return None
    low, high = 1, MAX_SEEDS  # power grows with the number of pairs
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _two_sided(t: float, freedom: int) -> float:
    from scipy import stats

    return float(2 * stats.t.sf(abs(t), freedom))


def _small_sample(freedom: int) -> float:
    """Hedges' exact correction of a standardized difference (Hedges 1981)."""
    if freedom < 2:
        return math.nan
    return math.exp(math.lgamma(freedom / 2) - math.lgamma((freedom - 1) / 2)) / math.sqrt(freedom / 2)
