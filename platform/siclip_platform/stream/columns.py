"""The columns of a batch, and how pieces of them are cut and joined."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from siclip_platform.stream.stored import StoredPair

Columns = dict[str, np.ndarray]


Range = tuple[int, int]
"""(start, stop): the positions start ≤ p < stop"""


def teacher_columns(pairs: Sequence[StoredPair | None]) -> Columns:
    """``teacher_image`` and ``teacher_text`` of `Batch`; nothing where nothing is stored."""
    stored = [pair for pair in pairs if pair is not None]
    if not stored:
        return {}
    return {f"teacher_{of}": np.stack([getattr(pair, of) for pair in stored]) for of in ("image", "text")}


def shares(batch_size: int, start: int, stop: int, rank: int = 0, workers: int = 1) -> Iterator[Range]:
    """The ``rank``-th of ``workers`` contiguous shares of each batch of the positions start ≤ p < stop."""
    for first in range(start, stop, batch_size):
        size = min(batch_size, stop - first)
        yield first + size * rank // workers, first + size * (rank + 1) // workers


def regrouped(pieces: Iterator[Mapping[str, np.ndarray]], sizes: Iterator[int]) -> Iterator[Columns]:
    """Pieces of any length as pieces of these sizes."""
    held: Columns = {}
    for size in sizes:
        while not held or len(held["tokens"]) < size:
            piece = next(pieces)
            held = {k: np.concatenate([held[k], v]) for k, v in piece.items()} if held else dict(piece)
        yield {k: v[:size] for k, v in held.items()}
        held = {k: v[size:] for k, v in held.items()}
