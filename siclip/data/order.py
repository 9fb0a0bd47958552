"""The order of samples and where we are in it: a pure function of (seed, epoch, position).

Row groups are shuffled by (seed, epoch) and taken in windows; rows are shuffled inside a window. A position is
the number of samples delivered since the start, so a cursor is one integer, and any process can compute what
comes next without having read what came before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class RowGroup:
    """A row group of one Parquet shard."""

    shard: int
    index: int
    rows: int


@dataclass(frozen=True)
class Piece:
    """Rows ``order[start:stop]`` of the rows of these row groups, read one after the other."""

    epoch: int
    window: int
    groups: tuple[RowGroup, ...]
    start: int
    stop: int


class SampleOrder:
    """The endless order of samples over epochs; every sample exactly once an epoch."""

    def __init__(self, groups: Sequence[RowGroup], seed: int, window_groups: int) -> None:
        self.groups = tuple(groups)
        self.seed = seed
        self.window_groups = window_groups
        self.rows = sum(group.rows for group in groups)

    def pieces(self, start: int, stop: int) -> Iterator[Piece]:
        """What to read for the positions start ≤ p < stop, in order."""
        epoch = start // self.rows
        position = epoch * self.rows
        while position < stop:
            for window, groups in enumerate(self._windows(epoch)):
                rows = sum(group.rows for group in groups)
                first, last = max(start - position, 0), min(stop - position, rows)
                if first < last:
                    yield Piece(epoch, window, groups, first, last)
                position += rows
            epoch += 1

    def rows_of(self, piece: Piece) -> np.ndarray:
        """Indices into the piece's concatenated row groups, in order of delivery."""
        rows = sum(group.rows for group in piece.groups)
        generator = np.random.default_rng([self.seed, piece.epoch, piece.window])
        return generator.permutation(rows)[piece.start : piece.stop]

    def _windows(self, epoch: int) -> Iterator[tuple[RowGroup, ...]]:
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.groups))
        for first in range(0, len(order), self.window_groups):
            yield tuple(self.groups[i] for i in order[first : first + self.window_groups])
