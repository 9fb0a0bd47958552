"""Which caption a sample gets: determined by (seed, epoch, sample id), so it is the same on every worker."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import accumulate

from siclip.data.config import CaptionPolicy

ORIGINAL, SYNTHETIC = "original", "synthetic"
Caption = Mapping[str, str | None]
"""``text``, ``source`` (original or synthetic) and, for a synthetic one, the ``model`` that wrote it."""


def uniform(*key: object) -> float:
    """A uniform number in [0, 1) that depends only on the key."""
    return stable_id("/".join(map(str, key))) / 2**63


def stable_id(text: str) -> int:
    """A 63-bit hash of a text (it fits int64), the same in every process, unlike `hash`."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def choose_caption(captions: Sequence[Caption], policy: CaptionPolicy, seed: int, epoch: int, sample_id: str) -> int:
    """The index of the caption that a sample gets in an epoch.

    Args:
        captions: of the sample.
        policy: how to draw.
        seed, epoch, sample_id: determine the draw.
    """
    by_source: dict[str, list[int]] = {ORIGINAL: [], SYNTHETIC: []}
    for index, caption in enumerate(captions):
        by_source[str(caption["source"])].append(index)
    if policy.synthetic_captions:
        by_source[SYNTHETIC] = by_source[SYNTHETIC][: policy.synthetic_captions]
    if policy.weights:
        by_source = {
            source: [i for i in indices if policy.weight(captions[i]) > 0] for source, indices in by_source.items()
        }
    source = SYNTHETIC if uniform(seed, epoch, sample_id, "kind") < policy.synthetic_share else ORIGINAL
    # The last fallback: all captions have weight 0.
    indices = by_source[source] or by_source[ORIGINAL] or by_source[SYNTHETIC] or list(range(len(captions)))
    fraction = uniform(seed, epoch, sample_id, "which")
    if not policy.weights:
        return indices[int(fraction * len(indices))]
    ends = list(accumulate(policy.weight(captions[i]) or 1.0 for i in indices))
    # The default is for rounding, should the product reach the last end.
    return next((i for i, end in zip(indices, ends, strict=True) if fraction * ends[-1] < end), indices[-1])
