"""The order of samples: a pure function of (seed, epoch, position).

Row groups are shuffled by (seed, epoch) and grouped into windows; rows are shuffled within a window. A position is
the number of samples delivered since the start, so a cursor is one integer, and any process can compute the next
samples without having read the earlier ones.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np

from siclip.errors import UserError

# Seed of the order in which a limit selects row groups; a constant, so that the subset is the same for every run.
LIMIT_ORDER = 20241122


@dataclass(frozen=True)
class RowGroup:
    """A row group of a Parquet shard, or its first ``rows`` rows."""

    shard: int
    index: int
    rows: int


@dataclass(frozen=True)
class Window:
    """Row groups whose rows are shuffled together; ``position`` is that of its first sample."""

    epoch: int
    index: int
    groups: tuple[RowGroup, ...]
    position: int

    @property
    def rows(self) -> int:
        return sum(group.rows for group in self.groups)


@dataclass(frozen=True)
class WindowSlice:
    """The samples start ≤ i < stop of a window."""

    window: Window
    start: int
    stop: int


class SampleOrder:
    """The infinite order of samples over epochs; every sample exactly once per epoch.

    Args:
        groups: all row groups.
        seed: of the order.
        window_groups: row groups per window.
    """

    def __init__(self, groups: Sequence[RowGroup], seed: int, window_groups: int) -> None:
        self.groups = tuple(groups)
        self.seed = seed
        self.window_groups = window_groups
        self.rows = sum(group.rows for group in groups)
        # One epoch is enough: consecutive positions are almost always in the same one.
        self._last: tuple[int, list[Window], list[int]] = (-1, [], [])

    def pieces(self, start: int, stop: int) -> Iterator[WindowSlice]:
        """The window slices that cover the positions start ≤ p < stop, in order."""
        while start < stop:
            window = self.window_at(start)
            first, last = start - window.position, min(stop - window.position, window.rows)
            yield WindowSlice(window, first, last)
            start = window.position + last

    def window_at(self, position: int) -> Window:
        """The window that contains a position."""
        windows, starts = self._windows(position // self.rows)
        return windows[bisect_right(starts, position) - 1]

    def rows_of(self, window: Window) -> np.ndarray:
        """Indices into the window's concatenated row groups, in the order of delivery."""
        return np.random.default_rng([self.seed, window.epoch, window.index]).permutation(window.rows)

    def _windows(self, epoch: int) -> tuple[list[Window], list[int]]:
        """The windows of an epoch and their first positions; those of the last epoch are cached."""
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
            # A window of empty row groups would share its first position with the next one.
            keep = [i for i, window in enumerate(filled) if window.rows]
            last = self._last = (epoch, [filled[i] for i in keep], [starts[i] for i in keep])
        return last[1], last[2]


def first_samples(groups: Sequence[RowGroup], limit: int) -> tuple[RowGroup, ...]:
    """The first ``limit`` samples of a fixed order, as row groups in file order; the last one may be truncated.

    The order is a pseudo-random permutation of the row groups, the same for every seed. The subset of a smaller limit
    is therefore contained in that of a larger one, and no file is read for only a few of its rows.

    Raises:
        UserError: there are fewer samples than the limit.
    """
    rows = sum(group.rows for group in groups)
    if limit > rows:
        raise UserError(f"limit {limit} is above the {rows} samples of the dataset: lower it, or use 0 for all")
    kept: dict[int, RowGroup] = {}
    for index in np.random.default_rng(LIMIT_ORDER).permutation(len(groups)):
        if limit <= 0:
            break
        kept[int(index)] = replace(groups[index], rows=min(limit, groups[index].rows))
        limit -= groups[index].rows
    return tuple(kept[index] for index in sorted(kept))
