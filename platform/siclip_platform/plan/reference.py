"""The reference job: SiCLIP-S0 on CC12M-SYN, as the paper (arXiv 2411.14789) trains it."""

from __future__ import annotations

from siclip.config import LossConfig, TrainingConfig
from siclip_platform.recipes.recipe import DataConfig, Recipe, StudentConfig

PAIRS = 12_000_000
AVAILABLE_PAIRS = 7_740_121
"""Of CC12M's 12,423,374 images, those that could still be downloaded in October 2025 (62.3 %): issue 9 of the
repository google-research-datasets/conceptual-12m."""
EPOCHS = 32
BATCH_SIZE = 1536


def reference_recipe() -> Recipe:
    """WIKD and pair matching, batch 1536, 32 epochs of 12 M pairs. The user names its teacher, MobileCLIP-S0."""
    return Recipe(
        data=DataConfig(path="cc12m-syn"),
        model=StudentConfig(name="siclip-s0"),
        loss=LossConfig(pair_matching=0.3),
        training=TrainingConfig(steps=PAIRS * EPOCHS // BATCH_SIZE, batch_size=BATCH_SIZE, warmup_steps=2000),
    )
