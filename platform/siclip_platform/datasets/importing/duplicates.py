"""Duplicate rows of a whole import: by id, by bytes, by perceptual hash. The first one is kept.

Near duplicates are rows whose 64-bit hashes differ in at most ``most`` bits. If the hashes are cut into n > ``most``
bands of bits, two near duplicates agree in at least n − ``most`` bands (multi-index hashing, Norouzi et al., arXiv
1307.2982), so only rows that share that many bands are compared. n is chosen to minimise the work.
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
SORTING = 3  # cost of a row in a sort, in comparisons of two hashes


def repeated(values: pa.ChunkedArray, kept: npt.NDArray[np.bool_]) -> tuple[Positions, Positions]:
    """Return (positions of repeated values among ``kept``, position of the first of each)."""
    positions = np.flatnonzero(kept)
    table = pa.table({"value": values.filter(pa.array(kept)), "position": positions})
    firsts = table.group_by("value").aggregate([("position", "min")])
    joined = pc.index_in(table["value"], value_set=firsts["value"].combine_chunks())
    first = firsts["position_min"].to_numpy()[joined.to_numpy()]
    later = positions != first
    return positions[later], first[later]


def near(hashes: Hashes, kept: npt.NDArray[np.bool_], most: int) -> tuple[Positions, Positions]:
    """Return (positions of near duplicates among ``kept``, for each the earlier row that it duplicates).

    Rows are processed in order. A row is dropped if it is near a kept row; it refers to the earliest of those.
    """
    positions = np.flatnonzero(kept)
    values, first = np.unique(hashes[positions], return_index=True)
    order = np.argsort(first, kind="stable")
    values, first = values[order], positions[first[order]]
    owner: dict[int, int] = {}
    for later, earlier in _pairs(values, most):
        if earlier not in owner and later not in owner:
            owner[later] = earlier
    dropped, originals = [], []
    index = {int(value): number for number, value in enumerate(values)}
    for position in positions:
        number = index[int(hashes[position])]
        original = first[owner.get(number, number)]
        if original != position:
            dropped.append(position)
            originals.append(original)
    return np.array(dropped, np.int64), np.array(originals, np.int64)


def _pairs(values: Hashes, most: int) -> Iterator[tuple[int, int]]:
    """Yield (later, earlier) of distinct values that differ in at most ``most`` bits; sorted."""
    found: list[npt.NDArray[np.int64]] = [np.empty((0, 2), np.int64)]
    for shared, skipped in _shared_bits(_bands(len(values), most), most):
        keys = values & shared
        order = np.argsort(keys)
        keys, hashes = keys[order], values[order]
        at, step = np.arange(len(order) - 1), 1
        # Compare each row with the next ones of equal key: 1 step away, then 2, until no pair is left.
        while len(at := at[keys[at] == keys[at + step]]):
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
    """Yield the bits of every choice of ``bands - most`` bands, and the bands skipped before the last of them.

    A pair that agrees in a skipped band is found by an earlier choice; without it each pair is found once.
    """
    edges = np.linspace(0, 64, bands + 1).astype(int).tolist()
    masks = [np.uint64((1 << high) - (1 << low)) for low, high in pairwise(edges)]
    for chosen in combinations(range(bands), bands - most):
        shared = np.bitwise_or.reduce([masks[band] for band in chosen])
        yield shared, [masks[band] for band in range(chosen[-1]) if band not in chosen]


def _bands(rows: int, most: int) -> int:
    """Return the number of bands with the least work: more bands mean more choices, each with fewer pairs."""

    def work(bands: int) -> float:
        shared = bands - most
        return comb(bands, shared) * (SORTING * rows + rows**2 / 2 / 2 ** (64 * shared / bands))

    return min(range(most + 1, most + 9), key=work)
