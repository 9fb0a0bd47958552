"""Rows that stand more than once in a whole import: by id, by bytes, by perceptual hash. The first one stays.

Near duplicates are those whose 64-bit hashes differ in ``most`` bits or fewer. Cut into n > ``most`` bands of bits,
two such hashes agree in at least n − ``most`` of them (multi-index hashing, Norouzi et al., arXiv 1307.2982), so only
rows that share so many bands are compared. n is the number that makes the least work of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, pairwise
from math import comb

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Positions = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]
SORTING = 3  # what a row costs in a sort, in comparisons of two hashes


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
    for shared, skipped in _shared_bits(_bands(len(values), most), most):
        keys = values & shared
        order = np.argsort(keys)
        keys, hashes = keys[order], values[order]
        at, step = np.arange(len(order) - 1), 1
        while len(at := at[keys[at] == keys[at + step]]):  # rows that share it with the one so many steps on
            difference = hashes[at] ^ hashes[at + step]
            close = np.bitwise_count(difference) <= most
            for band in skipped:
                close &= (difference & band) != 0
            pairs = np.stack([order[at[close]], order[at[close] + step]], axis=1)
            found.append(np.sort(pairs, axis=1)[:, ::-1])
            step += 1
            at = at[at + step < len(order)]
    pairs = np.concatenate(found)
    for later, earlier in pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]:
        yield int(later), int(earlier)


def _shared_bits(bands: int, most: int) -> Iterator[tuple[np.uint64, list[np.uint64]]]:
    """The bits of every ``bands - most`` bands, and the bands that were skipped before the last of them.

    A pair that agrees in a skipped one belongs to an earlier choice, so that each pair is found once.
    """
    edges = np.linspace(0, 64, bands + 1).astype(int).tolist()
    masks = [np.uint64((1 << high) - (1 << low)) for low, high in pairwise(edges)]
    for chosen in combinations(range(bands), bands - most):
        shared = np.bitwise_or.reduce([masks[band] for band in chosen])
        yield shared, [masks[band] for band in range(chosen[-1]) if band not in chosen]


def _bands(rows: int, most: int) -> int:
    """How many bands to cut: more choices of bands, each with fewer rows that share it."""

    def work(bands: int) -> float:
        shared = bands - most
        return comb(bands, shared) * (SORTING * rows + rows**2 / 2 / 2 ** (64 * shared / bands))

    return min(range(most + 1, most + 9), key=work)
