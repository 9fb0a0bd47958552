"""The losses of SiCLIP (arXiv 2411.14789): pure functions on embeddings, and their weighted sum."""

from __future__ import annotations

from siclip.losses.contrastive import FalseColumns, SiglipLoss, contrastive_loss, hinge_loss, siglip_loss
from siclip.losses.distillation import (
    contrastive_relational_loss,
    feature_distillation_loss,
    interactive_contrastive_loss,
)
from siclip.losses.objective import Embeddings, GeneratedTexts, Objective, PairIds
from siclip.losses.pair_matching import (
    ChosenFalse,
    PairMatchingHead,
    PairMatchingOutput,
    choose_generated,
    false_negative_mask,
    mine_negatives,
    pair_matching_loss,
)

__all__ = [
    "ChosenFalse",
    "Embeddings",
    "FalseColumns",
    "GeneratedTexts",
    "Objective",
    "PairIds",
    "PairMatchingHead",
    "PairMatchingOutput",
    "SiglipLoss",
    "choose_generated",
    "contrastive_loss",
    "contrastive_relational_loss",
    "false_negative_mask",
    "feature_distillation_loss",
    "hinge_loss",
    "interactive_contrastive_loss",
    "mine_negatives",
    "pair_matching_loss",
    "siglip_loss",
]
