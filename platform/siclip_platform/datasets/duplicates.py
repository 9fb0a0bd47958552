"""Rows that stand more than once in a whole import: by id, by bytes, by perceptual hash. The first one stays.

Near duplicates are those whose 64-bit hashes differ in ``most`` bits or fewer. By the pigeonhole principle two such
hashes agree in at least one of ``most + 1`` bands of bits, so only rows that share a band are compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Positions = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]
BLOCK = 2**20  # comparisons at a time


def repeated(values: pa.ChunkedArray, kept: npt.NDArray[np.bool_]) -> tuple[Positions, Positions]:
    """(positions of repeated values among ``kept``, position of the first of each)."""
    positions = np.flatnonzero(kept)
    table = pa.table({"value": values.filter(pa.array(kept)), "position": positions})
    firsts = table.group_by("value").aggregate([("position", "min")])
    joined = pc.index_in(table["value"], value_set=firsts["value"].combine_chunks())
    first = firsts["position_min"].to_numpy()[joined.to_numpy()]
    later = positions != first
    return positions[later], first[later]


def near(hashes: Hashes, kept: npt.NDArray[np.bool_], most: int) -> tuple[Positions, Positions]:
    """(positions of near duplicates among ``kept``, the earlier row that stays and that each is nearest to).

    Rows are taken in order: one is dropped if it is near a row that stays; of several the earliest is named.
    """
    positions = np.flatnonzero(kept)
    values, first = np.unique(hashes[positions], return_index=True)
    order = np.argsort(first, kind="stable")
    values, first = values[order], positions[first[order]]
    owner: dict[int, int] = {}
    for later, earlier in _pairs(values, most):
        if earlier not in owner and later not in owner:
            owner[later] = earlier
    dropped, stays = [], []
    index = {int(value): number for number, value in enumerate(values)}
    for position in positions:
        number = index[int(hashes[position])]
        keeper = first[owner.get(number, number)]
        if keeper != position:
            dropped.append(position)
            stays.append(keeper)
    return np.array(dropped, np.int64), np.array(stays, np.int64)


def _pairs(values: Hashes, most: int) -> Iterator[tuple[int, int]]:
    """(later, earlier) of distinct values that differ in ``most`` bits or fewer; sorted."""
    found: list[npt.NDArray[np.int64]] = [np.empty((0, 2), np.int64)]
    edges = np.linspace(0, 64, most + 2).astype(int)
    for low, high in pairwise(edges):
        band = (values >> np.uint64(low)) & np.uint64(2 ** int(high - low) - 1)
        order = np.argsort(band, kind="stable")
        starts = np.flatnonzero(np.diff(band[order], prepend=band[order][:1] ^ np.uint64(1)))
        for bucket in np.split(order, starts[1:]):
            found.extend(_within(values, bucket, most))
    pairs = np.unique(np.concatenate(found), axis=0)
    for later, earlier in pairs:
        yield int(later), int(earlier)


def _within(values: Hashes, bucket: Positions, most: int) -> Iterator[npt.NDArray[np.int64]]:
    """Pairs (later, earlier) of a bucket, whose numbers rise."""
    rows = max(BLOCK // max(len(bucket), 1), 1)
    for start in range(1, len(bucket), rows):
        later = bucket[start : start + rows]
        distance = np.bitwise_count(values[later][:, None] ^ values[bucket][None, :])
        close, other = np.nonzero(distance <= most)
        pairs = np.stack([later[close], bucket[other]], axis=1)
        yield pairs[pairs[:, 0] > pairs[:, 1]]
