"""Metrics of the blocks during training: gains, and the divergence of their attention."""

from __future__ import annotations

import torch

from siclip.checkpoints.patterns import TOWERS, Tower, pattern_of
from siclip.data.batch import TrunkFeatures
from siclip.diagnostics.divergence import features_divergence
from siclip.models.clip import Clip
from siclip.models.sasp import SasPBlock

# Bounds the cost of a diagnosis: the maps of a tower's blocks are in memory, each SAMPLES·H·T² floats.
SAMPLES = 32
_GAINS = ("alpha", "beta", "gamma", "beta_sa", "beta_ff")


def gains(model: Clip) -> dict[str, float]:
    """``gain/TOWER/BLOCK/NAME`` for every SAS-P block: the means over heads of α, β and γ, and β_SA and β_FF."""
    names, values = [], []
    for tower in TOWERS:
        for index, block in enumerate(getattr(model, f"{tower}_encoder").blocks):
            if isinstance(block, SasPBlock):
                for gain in _GAINS:
                    names.append(f"gain/{tower}/{index}/{gain}")
                    values.append(getattr(block, gain).detach().float().mean())
    # One transfer from the device for all values.
    return dict(zip(names, torch.stack(values).tolist(), strict=True)) if values else {}


def divergences(model: Clip, features: TrunkFeatures) -> dict[str, float]:
    """``divergence/TOWER/I-J``: Jensen-Shannon divergence in nats, for adjacent blocks and blocks that share weights.

    Args:
        model: the model.
        features: trunk outputs of a batch, of which the first `SAMPLES` samples are used.
    """
    found = features_divergence(model, features[:SAMPLES])
    return {
        f"divergence/{tower}/{i}-{j}": found[tower].pairs[i][j] for tower in TOWERS for i, j in _watched(model, tower)
    }


def _watched(model: Clip, tower: Tower) -> list[tuple[int, int]]:
    pattern = pattern_of(model.config, tower)
    blocks = len(pattern.assignment)
    pairs = [(i, j) for i in range(blocks) for j in range(i + 1, blocks)]
    return [(i, j) for i, j in pairs if j == i + 1 or pattern.owner(i) == pattern.owner(j)]
