"""Bootstrap confidence intervals (Efron 1979, percentile method), paired when two models are compared.

A metric is a function of the indices of the samples on which it is computed. All metrics of a set, and all models
measured on it, use the same resamples, so that differences are paired by sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Statistic = Callable[[npt.NDArray[np.int64]], float]
"""Indices of samples, with repetition → the metric on them."""


@dataclass(frozen=True)
class Interval:
    """A metric's value and its confidence interval."""

    value: float
    low: float
    high: float


def intervals(
    statistics: Mapping[str, Statistic], units: int, *, resamples: int = 1000, confidence: float = 0.95, seed: int = 0
) -> dict[str, Interval]:
    """The metrics of a set with percentile intervals.

    Args:
        statistics: the metrics by name.
        units: number of samples.
        resamples: number of draws with replacement. Draws on which a metric is nan are excluded from its interval.
        confidence: of the intervals.
        seed: of the draws.
    """
    everything = np.arange(units)
    drawn: dict[str, list[float]] = {name: [] for name in statistics}
    for chosen in _draws(units, resamples, seed):
        for name, statistic in statistics.items():
            drawn[name].append(statistic(chosen))
    return {name: _interval(statistics[name](everything), drawn[name], confidence) for name in statistics}


def paired_differences(
    first: Mapping[str, Statistic],
    second: Mapping[str, Statistic],
    units: int,
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """``second − first`` for the metrics that both have, on the same resamples; arguments as `intervals`."""

    def difference(name: str) -> Statistic:
        return lambda chosen: second[name](chosen) - first[name](chosen)

    shared = {name: difference(name) for name in first if name in second}
    return intervals(shared, units, resamples=resamples, confidence=confidence, seed=seed)


def _draws(units: int, resamples: int, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    generator = np.random.default_rng(seed)
    for _ in range(resamples):
        yield generator.integers(0, units, units)


def _interval(value: float, drawn: list[float], confidence: float) -> Interval:
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(drawn, [tail, 1 - tail]) if drawn and not np.isnan(drawn).all() else (value, value)
    return Interval(float(value), float(low), float(high))
