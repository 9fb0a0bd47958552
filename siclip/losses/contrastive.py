"""The contrastive loss of CLIP (arXiv 2103.00020).

B pairs, D dimensions. Embeddings are L2-normalised, a logit scale is the exponentiated value.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from siclip.losses.precision import full_precision


def contrastive_loss(image: Tensor, text: Tensor, logit_scale: Tensor) -> Tensor:
    """½[CE(s·z_I z_Tᵀ, i) + CE(s·z_T z_Iᵀ, i)], a scalar in fp32 (fp64 for fp64 inputs) under any autocast.

    Args:
        image: (B, D), L2-normalised.
        text: (B, D), L2-normalised; row i matches image i.
        logit_scale: scalar s, exponentiated.
    """
    with torch.autocast(image.device.type, enabled=False):
        image, text, logit_scale = full_precision(image, text, logit_scale)
        logits_BB = logit_scale * image @ text.T
        target_B = torch.arange(len(image), device=image.device)
        return (F.cross_entropy(logits_BB, target_B) + F.cross_entropy(logits_BB.T, target_B)) / 2
