"""The columns of a batch, and how they are cut and joined."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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
