"""The columns of a batch, and how they are cut and joined."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from siclip_platform.stream.stored import StoredPair

Columns = dict[str, np.ndarray]
"""Fields of `siclip.data.batch.Batch`, each with a row per sample."""
Range = tuple[int, int]
"""(start, stop): the positions start ≤ p < stop."""


def teacher_columns(pairs: Sequence[StoredPair | None]) -> Columns:
    """Return ``teacher_image`` and ``teacher_text`` (B, D) of `Batch`; no columns if no embeddings are stored."""
    stored = [pair for pair in pairs if pair is not None]
    if not stored:
        return {}
    return {f"teacher_{of}": np.stack([getattr(pair, of) for pair in stored]) for of in ("image", "text")}


def shares(batch_size: int, start: int, stop: int, rank: int = 0, workers: int = 1) -> Iterator[Range]:
    """Yield the ``rank``-th of ``workers`` contiguous shares of each batch of the positions start ≤ p < stop."""
    for first in range(start, stop, batch_size):
        size = min(batch_size, stop - first)
        yield first + size * rank // workers, first + size * (rank + 1) // workers


def regrouped(blocks: Iterator[Mapping[str, np.ndarray]], sizes: Iterator[int]) -> Iterator[Columns]:
    """Cut and join blocks of any length into blocks of these sizes."""
    rest: Columns = {}
    for size in sizes:
        while not rest or len(rest["tokens"]) < size:
            block = next(blocks)
            rest = {k: np.concatenate([rest[k], v]) for k, v in block.items()} if rest else dict(block)
        yield {k: v[:size] for k, v in rest.items()}
        rest = {k: v[size:] for k, v in rest.items()}
