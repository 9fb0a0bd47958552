"""Statistics over seeds: intervals, paired differences, Holm's correction, effect sizes and sample sizes.

Seeds are the only replicates: an interval covers what the seed changes (weights, order, captions, negatives), not
what other data or another teacher would change.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95
ALPHA = 1 - CONFIDENCE
POWER = 0.8  # the usual power of a planned study
MAX_SEEDS = 1000  # beyond any budget
FAR = 6.0  # standard errors past the critical value: the power there is 1 to nine digits
ROUNDING = 1e-12  # relative size of the differences that float64 arithmetic leaves between equal values


@dataclass(frozen=True)
class Estimate:
    """A mean with its two-sided 95 % interval: NaN bounds for one value, all NaN without values."""

    mean: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Difference:
    """One group minus another.

    Values that cannot be known are NaN: interval, p and effect of one pair, and p and effect of equal differences.

    Attributes:
        mean: Difference of the means.
        low: Lower end of its 95 % interval.
        high: Upper end of its 95 % interval.
        p: Two-sided p value of the t test against 0.
        effect: Hedges' g.
        pairs: Number of pairs, or if not paired the size of the smaller group.
        paired: Whether the values were paired by seed.
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
    """Mean of the finite values and its Student t interval."""
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


def deviation(values: Sequence[float]) -> float:
    """Sample standard deviation of at least two values; 0 if they differ only by rounding."""
    mean = math.fsum(values) / len(values)
    found = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return 0.0 if found <= ROUNDING * max(1e-300, *map(abs, values)) else found


def paired_difference(one: Mapping[int, float], other: Mapping[int, float]) -> Difference | None:
    """``one`` − ``other`` by the paired t test; None without a common seed.

    Pairing by seed removes what all settings share at a seed (for example the order of the data).

    Args:
        one: Seed → value. Seeds at which either value is not finite are ignored.
        other: Seed → value of the other group.
    """
    seeds = sorted(seed for seed in one.keys() & other.keys() if math.isfinite(one[seed] - other[seed]))
    if not seeds:
        return None
    gaps = [one[seed] - other[seed] for seed in seeds]
    # Subtraction leaves rounding errors of the operands' size, which must not be taken for noise between seeds.
    scale = max(abs(value) for seed in seeds for value in (one[seed], other[seed]))
    found, count = t_interval(gaps), len(gaps)
    spread = deviation(gaps) if count > 1 else math.nan
    if count < 2 or spread <= ROUNDING * scale:
        equal = 1.0 if count > 1 and abs(found.mean) <= ROUNDING * scale else math.nan
        return Difference(found.mean, found.low, found.high, equal, math.nan, count, True)
    p = _two_sided(found.mean / (spread / math.sqrt(count)), count - 1)
    effect = found.mean / spread * _small_sample(count - 1)
    return Difference(found.mean, found.low, found.high, p, effect, count, True)


def independent_difference(one: Sequence[float], other: Sequence[float]) -> Difference | None:
    """``one`` − ``other`` by the pooled t test; None if either group has no finite value."""
    from scipy import stats

    a, b = finite(one), finite(other)
    if not a or not b:
        return None
    gap = math.fsum(a) / len(a) - math.fsum(b) / len(b)
    freedom, pairs = len(a) + len(b) - 2, min(len(a), len(b))
    squares = sum(deviation(group) ** 2 * (len(group) - 1) for group in (a, b) if len(group) > 1)
    if not freedom or not squares:
        return Difference(gap, math.nan, math.nan, math.nan, math.nan, pairs, False)
    # Pooled, not Welch's: a control with one value has no variance of its own.
    pooled = math.sqrt(squares / freedom)
    error = pooled * math.sqrt(1 / len(a) + 1 / len(b))
    half = float(stats.t.ppf(1 - ALPHA / 2, freedom)) * error
    effect = gap / pooled * _small_sample(freedom)
    return Difference(gap, gap - half, gap + half, _two_sided(gap / error, freedom), effect, pairs, False)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction for several comparisons (Holm 1979).

    It bounds the chance of any false positive among them, as Bonferroni's does, with more power. A p value that is
    not known (NaN) stays NaN and still counts as a comparison.

    Raises:
        ValueError: A p value outside 0 to 1.
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
    """Number of pairs with which a paired t test detects a true difference; None if above `MAX_SEEDS` or not known.

    Args:
        standardized: The difference in standard deviations of the paired differences.
        alpha: Level of the two-sided test.
        power: Chance of detecting the difference.
    """
    from scipy import stats

    size = abs(standardized)
    if not math.isfinite(size) or size == 0:
        return None

    def enough(count: int) -> bool:
        """Power by the noncentral t distribution, without its tail on the wrong side (below alpha / 2)."""
        critical = float(stats.t.ppf(1 - alpha / 2, count - 1))
        shift = size * math.sqrt(count)
        # scipy's noncentral t returns NaN this far out.
        if shift > critical + FAR:
            return True
        return bool(stats.nct.sf(critical, count - 1, shift) >= power)

    if not enough(MAX_SEEDS):
        return None
    # Bisection: power grows with the number of pairs.
    low, high = 1, MAX_SEEDS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _two_sided(t: float, freedom: int) -> float:
    from scipy import stats

    return float(2 * stats.t.sf(abs(t), freedom))


def _small_sample(freedom: int) -> float:
    """Hedges' exact small-sample correction of a standardized difference (Hedges 1981)."""
    if freedom < 2:
        return math.nan
    return math.exp(math.lgamma(freedom / 2) - math.lgamma((freedom - 1) / 2)) / math.sqrt(freedom / 2)
