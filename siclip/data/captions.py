"""Which caption a sample gets: decided by (seed, epoch, sample id), so it is the same on any worker."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import accumulate

from siclip.data.config import CaptionPolicy

ORIGINAL, SYNTHETIC = "original", "synthetic"
Caption = Mapping[str, str | None]
"""``text``, ``source`` (original or synthetic) and ``model``, which wrote a synthetic one."""


def uniform(*key: object) -> float:
    """A number in [0, 1) that depends on nothing but the key."""
    return stable_id("/".join(map(str, key))) / 2**63


def stable_id(text: str) -> int:
    """A 63-bit integer for a text, the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def choose_caption(captions: Sequence[Caption], policy: CaptionPolicy, seed: int, epoch: int, sample_id: str) -> int:
    """The index of the caption that a sample gets in an epoch."""
    kinds: dict[str, list[int]] = {ORIGINAL: [], SYNTHETIC: []}
    for index, caption in enumerate(captions):
        kinds[str(caption["source"])].append(index)
    if policy.synthetic_captions:
        kinds[SYNTHETIC] = kinds[SYNTHETIC][: policy.synthetic_captions]
    if policy.weights:
        kinds = {kind: [i for i in some if policy.weight(captions[i]) > 0] for kind, some in kinds.items()}
    kind = SYNTHETIC if uniform(seed, epoch, sample_id, "kind") < policy.synthetic_share else ORIGINAL
    indices = kinds[kind] or kinds[ORIGINAL] or kinds[SYNTHETIC] or list(range(len(captions)))
    place = uniform(seed, epoch, sample_id, "which")
    if not policy.weights:
        return indices[int(place * len(indices))]
    ends = list(accumulate(policy.weight(captions[i]) or 1.0 for i in indices))
    return next((i for i, end in zip(indices, ends, strict=True) if place * ends[-1] < end), indices[-1])
