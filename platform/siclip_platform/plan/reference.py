"""The reference job: SiCLIP-S0 on CC12M-SYN, as the paper (arXiv 2411.14789) trains it."""

from __future__ import annotations

RECIPE = "siclip-s0-cc12m-syn"
"""The shipped recipe of the job."""
CARD = "rtx-3090"
AVAILABLE_PAIRS = 7_740_121
"""Of CC12M's 12,423,374 images, those that could still be downloaded in October 2025 (62.3 %): issue 9 of the
repository google-research-datasets/conceptual-12m."""
