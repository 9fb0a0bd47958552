"""False captions of a sample: near-miss texts that say something else than the true caption (arXiv 2210.01936)."""

from __future__ import annotations

from collections.abc import Sequence

from siclip.data.captions import uniform

KINDS = ("swap_nouns", "swap_attributes", "colour", "number", "size", "direction", "antonym", "noun")
"""What a false caption changes; a batch names a kind by its index. New kinds are appended."""
NONE = -1
"""In place of a kind: the sample has no further false caption."""


def choose_negatives(available: int, count: int, seed: int, epoch: int, sample_id: str) -> list[int]:
    """The indices of the false captions that a sample gets in an epoch: all different, and fewer if there are fewer.

    Args:
        available: how many false captions the sample's caption has.
        count: how many are wanted.
        seed, epoch, sample_id: determine the draw.
    """
    order = sorted(range(available), key=lambda index: uniform(seed, epoch, sample_id, "negative", index))
    return order[:count]


def kind_index(kind: str) -> int:
    """The index of a kind in `KINDS`."""
    return KINDS.index(kind)


def kind_names(kinds: Sequence[str]) -> tuple[str, ...]:
    """The kinds in the order of `KINDS`, each once."""
    return tuple(kind for kind in KINDS if kind in kinds)
