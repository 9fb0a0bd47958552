"""Which caption a sample gets: decided by (seed, epoch, sample id), so it is the same on any worker."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

ORIGINAL, SYNTHETIC = "original", "synthetic"


def uniform(*key: object) -> float:
    """A number in [0, 1) that depends on nothing but the key."""
    return stable_id("/".join(map(str, key))) / 2**63


def stable_id(text: str) -> int:
    """A 63-bit integer for a text, the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def choose_caption(
    captions: Sequence[Mapping[str, str]], synthetic_share: float, seed: int, epoch: int, sample_id: str
) -> str:
    """The caption of a sample in an epoch: with probability ``synthetic_share`` one of the synthetic ones.

    A sample that has only one kind gets one of that kind.
    """
    kinds = {kind: [c["text"] for c in captions if c["source"] == kind] for kind in (ORIGINAL, SYNTHETIC)}
    kind = SYNTHETIC if uniform(seed, epoch, sample_id, "kind") < synthetic_share else ORIGINAL
    texts = kinds[kind] or kinds[ORIGINAL] or kinds[SYNTHETIC]
    return texts[int(uniform(seed, epoch, sample_id, "which") * len(texts))]
