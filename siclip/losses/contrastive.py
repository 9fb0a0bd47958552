"""The contrastive losses of CLIP (arXiv 2103.00020) and of SigLIP (arXiv 2303.15343).

Shapes: B samples, D dimensions. Embeddings are L2-normalised; a logit scale is the exponentiated value. All
arithmetic is fp32 (fp64 for fp64 inputs) under any autocast.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from siclip.losses.precision import full_precision

MAX_LOG_SCALE = math.log(100)
# Initial values of SigLIP's scalars (arXiv 2303.15343, section 3.2).
SIGLIP_LOG_SCALE = math.log(10)
SIGLIP_BIAS = -10.0


def contrastive_loss(
    image: Tensor, text: Tensor, logit_scale: Tensor, false_captions: FalseColumns | None = None
) -> Tensor:
    """CLIP's loss ½[CE(s·z_I z_Tᵀ, i) + CE(s·z_T z_Iᵀ, i)] (arXiv 2103.00020, figure 3), a scalar.

    False captions are further columns of the image side's softmax, as in NegCLIP (arXiv 2210.01936).

    Args:
        image: (B, D), L2-normalised.
        text: (B, D), L2-normalised; row i matches image i.
        logit_scale: scalar s, exponentiated.
        false_captions: further texts that images must not match; None: the batch's captions alone.
    """
    with torch.autocast(image.device.type, enabled=False):
        image, text, logit_scale = full_precision(image, text, logit_scale)
        logits_BB = logit_scale * image @ text.T
        target_B = torch.arange(len(image), device=image.device)
        rows = logits_BB
        if false_captions is not None:
            further = (logit_scale * false_captions.cosines(image)).masked_fill(~false_captions.used, -math.inf)
            rows = torch.cat([logits_BB, further], dim=1)
        return (F.cross_entropy(rows, target_B) + F.cross_entropy(logits_BB.T, target_B)) / 2


class FalseColumns(NamedTuple):
    """False captions for each image of a batch.

    Attributes:
        text: (B, K, D) K of each image, or (N, D) the same N for all; L2-normalised.
        used: (B, K) or (B, N) bool, False where a text is missing or may be true.
    """

    text: Tensor
    used: Tensor

    def cosines(self, image: Tensor) -> Tensor:
        """Of the images (B, D) with their false captions: (B, K) or (B, N)."""
        text = self.text.to(image.dtype)
        return image @ text.T if text.ndim == image.ndim else torch.einsum("bd,bkd->bk", image, text)


def hinge_loss(image: Tensor, text: Tensor, false_captions: FalseColumns, margin: float) -> Tensor:
    """The mean of max(0, margin − z_I·z_T + z_I·z_N) over the false captions z_N that are used; 0 if none is.

    The max-margin loss of arXiv 1411.2539, here with the false captions alone (**ours**).

    Args:
        image: (B, D), L2-normalised.
        text: (B, D), L2-normalised; row i matches image i.
        false_captions: of the images.
        margin: a difference of cosines.
    """
    with torch.autocast(image.device.type, enabled=False):
        image, text = full_precision(image, text)
        violation = F.relu(margin - (image * text).sum(dim=1, keepdim=True) + false_captions.cosines(image))
        return (violation * false_captions.used).sum() / false_captions.used.sum().clamp(min=1)


def siglip_loss(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    false_captions: FalseColumns | None = None,
) -> Tensor:
    """−1/B Σ_i Σ_j ln σ(y_ij·(t·z_I,i·z_T,j + b)), y = 1 for i = j and −1 elsewhere (arXiv 2303.15343, eq. 1).

    As in the paper, every other pair of the batch is a negative: false negatives are not masked. False captions are
    further pairs with y = −1 (**ours**).

    Args:
        image: (B, D), L2-normalised.
        text: (B, D), L2-normalised; row i matches image i.
        logit_scale: scalar t, exponentiated.
        logit_bias: scalar b.
        false_captions: further texts that images must not match; None: the batch's captions alone.
    """
    with torch.autocast(image.device.type, enabled=False):
        image, text, logit_scale, logit_bias = full_precision(image, text, logit_scale, logit_bias)
        logits_BB = logit_scale * image @ text.T + logit_bias
        label_BB = 2 * torch.eye(len(image), dtype=image.dtype, device=image.device) - 1
        total = -F.logsigmoid(label_BB * logits_BB).sum()
        if false_captions is not None:
            further = logit_scale * false_captions.cosines(image) + logit_bias
            total = total - (F.logsigmoid(-further) * false_captions.used).sum()
        return total / len(image)


class SiglipLoss(nn.Module):
    """`siglip_loss` with its two learned scalars, initialised as in the paper: ln t = ln 10, b = −10.

    The scale is separate from the model's ``logit_scale`` (**ours**). Scale and bias are initialised together, so
    that few of the B² − B negatives contribute at first; the model's scale starts at another value or is inherited,
    where this bias would be far off. CRD and the miners use the model's scale, and only CRD then trains it. t is at
    most 100 (**ours**; the paper has no bound).
    """

    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(SIGLIP_LOG_SCALE))
        self.logit_bias = nn.Parameter(torch.tensor(SIGLIP_BIAS))

    def forward(self, image: Tensor, text: Tensor, false_captions: FalseColumns | None = None) -> Tensor:
        """(B, D) and (B, D), L2-normalised → a scalar; arguments as `siglip_loss`."""
        return siglip_loss(image, text, capped_scale(self.logit_scale), self.logit_bias, false_captions)


def capped_scale(log_scale: nn.Parameter) -> Tensor:
    """exp of a learned log scale. The parameter is first clamped in place to at most ln 100."""
    # Not a clamp in the graph, which would stop the gradient at the bound.
    with torch.no_grad():
        log_scale.clamp_(max=MAX_LOG_SCALE)
    return log_scale.exp()
