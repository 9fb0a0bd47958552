"""Sharing patterns worth a trial, proposed from the divergence of attention maps, and the parameters they save."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, product
from typing import Literal

import torch

from siclip.config import ModelConfig
from siclip.diagnostics.divergence import AttentionDivergence
from siclip.models.clip import Clip, count_parameters
from siclip.models.sharing import SharingPattern

Tower = Literal["image", "text"]
Pairs = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Proposal:
    """A pattern and the evidence for it.

    Attributes:
        pattern: the sharing pattern.
        within: mean divergence, in nats, over the pairs of blocks that would share.
        below_baseline: whether ``within`` is below the mean of the non-adjacent pairs; None if the tower has none.
    """

    pattern: SharingPattern
    within: float
    below_baseline: bool | None


def propose_sharing(divergence: AttentionDivergence) -> tuple[Proposal, ...]:
    """Patterns of shared queries and keys, from the one that shares least to the one that shares all.

    There are n − 1 for n blocks. Groups of adjacent blocks are merged one pair at a time: the pair with the lowest
    mean divergence between its members (average linkage), the first of equal ones.
    """
    groups = [[block] for block in range(len(divergence.pairs))]
    proposals = []
    while len(groups) > 1:
        gaps = [_between(divergence.pairs, *groups[i : i + 2]) for i in range(len(groups) - 1)]
        closest = gaps.index(min(gaps))
        groups[closest : closest + 2] = [groups[closest] + groups[closest + 1]]
        proposals.append(_proposal(divergence, groups))
    return tuple(proposals)


def parameters_saved(config: ModelConfig, tower: Tower, pattern: SharingPattern) -> int:
    """Parameters that a pattern saves, compared with SAS-P blocks that share nothing. No memory is allocated.

    Args:
        config: if the tower has attention blocks, it is counted with SAS-P blocks instead.
        tower: the tower to which the pattern applies.
        pattern: the pattern.
    """
    return _parameters(config, tower, "none") - _parameters(config, tower, str(pattern))


def _parameters(config: ModelConfig, tower: Tower, sharing: str) -> int:
    sasp = getattr(config, tower).model_copy(update={"block": "sasp", "sharing": sharing})
    # On the meta device parameters have shapes but no memory.
    with torch.device("meta"):
        return count_parameters(Clip(config.model_copy(update={tower: sasp})))


def _proposal(divergence: AttentionDivergence, groups: list[list[int]]) -> Proposal:
    assignment = tuple(number for number, group in enumerate(groups) for _ in group)
    shared = [divergence.pairs[i][j] for group in groups for i, j in combinations(group, 2)]
    within, baseline = sum(shared) / len(shared), divergence.non_adjacent_mean
    return Proposal(SharingPattern("qk", assignment), within, None if baseline is None else within < baseline)


def _between(pairs: Pairs, left: list[int], right: list[int]) -> float:
    return sum(pairs[i][j] for i, j in product(left, right)) / (len(left) * len(right))
