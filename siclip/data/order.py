"""The order of samples and where we are in it: a pure function of (seed, epoch, position).

Row groups are shuffled by (seed, epoch) and taken in windows; rows are shuffled inside a window. A position is
the number of samples delivered since the start, so a cursor is one integer, and any process can compute what
comes next without having read what came before.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np

from siclip.errors import UserError

LIMIT_ORDER = 20241122  # seeds the order that a limit follows; a constant, so that every run has the same subsets


@dataclass(frozen=True)
class RowGroup:
    """A row group of one Parquet shard, or its first ``rows``."""

    shard: int
    index: int
    rows: int


@dataclass(frozen=True)
class Window:
    """Row groups whose rows are shuffled together; its first sample stands at ``position``."""

    epoch: int
    index: int
    groups: tuple[RowGroup, ...]
    position: int

    @property
    def rows(self) -> int:
        return sum(group.rows for group in self.groups)


@dataclass(frozen=True)
class WindowSlice:
    """The places start ≤ p < stop of a window."""

    window: Window
    start: int
    stop: int


class SampleOrder:
    """The endless order of samples over epochs; every sample exactly once an epoch."""

    def __init__(self, groups: Sequence[RowGroup], seed: int, window_groups: int) -> None:
        self.groups = tuple(groups)
        self.seed = seed
        self.window_groups = window_groups
        self.rows = sum(group.rows for group in groups)
        self._last: tuple[int, list[Window], list[int]] = (-1, [], [])

    def pieces(self, start: int, stop: int) -> Iterator[WindowSlice]:
        """What to read for the positions start ≤ p < stop, in order."""
        while start < stop:
            window = self.window_at(start)
            first, last = start - window.position, min(stop - window.position, window.rows)
            yield WindowSlice(window, first, last)
            start = window.position + last

    def window_at(self, position: int) -> Window:
        """The window that holds a position."""
        windows, starts = self._windows(position // self.rows)
        return windows[bisect_right(starts, position) - 1]

    def rows_of(self, window: Window) -> np.ndarray:
        """Indices into the window's concatenated row groups, in order of delivery."""
        return np.random.default_rng([self.seed, window.epoch, window.index]).permutation(window.rows)

    def _windows(self, epoch: int) -> tuple[list[Window], list[int]]:
        """The windows of an epoch and where each starts; the last epoch asked for is kept."""
        last = self._last
        if last[0] != epoch:
            order = np.random.default_rng([self.seed, epoch]).permutation(len(self.groups))
            parts = [
                tuple(self.groups[i] for i in order[first : first + self.window_groups])
                for first in range(0, len(order), self.window_groups)
            ]
            sizes = (sum(group.rows for group in part) for part in parts)
            starts = list(accumulate(sizes, initial=epoch * self.rows))[:-1]
            filled = [Window(epoch, i, part, starts[i]) for i, part in enumerate(parts)]
            keep = [i for i, window in enumerate(filled) if window.rows]  # an empty row group may stand alone
            last = self._last = (epoch, [filled[i] for i in keep], [starts[i] for i in keep])
        return last[1], last[2]


def first_samples(groups: Sequence[RowGroup], limit: int) -> tuple[RowGroup, ...]:
    """The first ``limit`` samples of a fixed order, as row groups in file order; the last one taken may be cut.

    The order is a pseudo-random one of row groups, the same for every seed, so that the subset of a smaller limit
    lies in that of a larger one and no file is read for a few rows of it.

    Raises:
        UserError: there are fewer samples than that.
    """
    rows = sum(group.rows for group in groups)
    if limit > rows:
        raise UserError(f"limit {limit} asks for more samples than the {rows} that there are: lower it, or 0 for all")
    kept: dict[int, RowGroup] = {}
    for place in np.random.default_rng(LIMIT_ORDER).permutation(len(groups)):
        if limit <= 0:
            break
        kept[int(place)] = replace(groups[place], rows=min(limit, groups[place].rows))
        limit -= groups[place].rows
    return tuple(kept[place] for place in sorted(kept))
