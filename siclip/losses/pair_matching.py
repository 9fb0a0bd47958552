"""Pair matching (PM; SiCLIP, arXiv 2411.14789): tell matched pairs from similar mismatched ones.

B pairs, D dimensions, N candidate pairs. Embeddings are L2-normalised. All arithmetic is fp32 (fp64 for fp64
inputs) under any autocast.
"""

from __future__ import annotations

import math
from typing import NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from siclip.config import MiningStrategy, PairHead
from siclip.errors import UserError
from siclip.losses.precision import full_precision

INITIAL_SCALE = 10.0
PRIOR_LOGIT = math.log(1 / 2)
"""The logit of 1 positive to 2 negatives."""


def false_negative_mask(
    image_ids: Tensor, caption_ids: Tensor, teacher_text: Tensor | None = None, threshold: float = 0.9
) -> Tensor:
    """Which pairs may not serve as negatives: (B, B) bool, symmetric, True on the diagonal.

    True where two samples have the same image id, the same caption id, or a teacher text-text cosine strictly
    above the threshold. Without a teacher's text only the ids count.

    Args:
        image_ids, caption_ids: (B,) integer.
        teacher_text: (B, D_t), L2-normalised, or None.
        threshold: cosine.
    """
    mask_BB = (image_ids[:, None] == image_ids) | (caption_ids[:, None] == caption_ids)
    if teacher_text is not None:
        with torch.no_grad(), torch.autocast(teacher_text.device.type, enabled=False):
            (text,) = full_precision(teacher_text)
            close_BB = text @ text.T > threshold
        mask_BB = mask_BB | close_BB | close_BB.T
    return mask_BB


@torch.no_grad()
def mine_negatives(
    similarity: Tensor,
    strategy: MiningStrategy,
    *,
    exclude: Tensor,
    generator: torch.Generator,
    progress: float | None = None,
) -> Tensor:
    """One negative per query: (B,) long, the candidate's index, -1 where a row has none. Carries no gradient.

    - ``sampled``: j with p(j|i) ∝ exp(similarity_ij) over the candidates that are not excluded.
    - ``uniform``: any of them with the same probability.
    - ``hardest``: the most similar one.
    - ``semi_hard``: the most similar one below the positive (FaceNet, arXiv 1503.03832); where none is below,
      the least similar one.
    - ``teacher``: ``hardest``, for a similarity that is the teacher's: the caller passes that matrix.
    - ``annealed``: from ``uniform`` to ``hardest`` over the training (**ours**): p(j|i) ∝ exp(κ·similarity_ij) with
      κ = progress / (1 − progress), so ``uniform`` at 0, ``sampled`` at ½ and ``hardest`` at 1.

    Randomness comes from the generator alone and is drawn on the generator's device, so a CPU generator gives
    the same draws whatever device the similarity is on.

    Args:
        similarity: (B, B), row i a query, column i its positive; for ``sampled`` and ``annealed`` scaled by the
            logit scale.
        exclude: (B, B) bool, pairs that may not be negatives; the diagonal never may, whatever it says.
        progress: share of the training that is done, 0 to 1; only ``annealed`` needs it.

    Raises:
        UserError: a wrong shape, an unknown strategy, a progress outside 0 to 1, or none for ``annealed``.
    """
    if not similarity.shape == exclude.shape == (len(similarity), len(similarity)):
        raise UserError(
            f"mine_negatives: similarity {tuple(similarity.shape)} and exclude {tuple(exclude.shape)} must "
            "both be (B, B)"
        )
    if progress is not None and not 0 <= progress <= 1:
        raise UserError(f"mine_negatives: progress {progress} must be from 0 to 1, the share of the training done")
    (similarity,) = full_precision(similarity)
    exclude = exclude | torch.eye(len(exclude), dtype=torch.bool, device=exclude.device)
    score_BB = _scores(similarity, strategy, exclude, generator, progress).masked_fill(exclude, -math.inf)
    return score_BB.argmax(dim=1).masked_fill(exclude.all(dim=1), -1)


def _scores(
    similarity: Tensor,
    strategy: MiningStrategy,
    exclude: Tensor,
    generator: torch.Generator,
    progress: float | None,
) -> Tensor:
    """(B, B): the strategy's choice for a query is the allowed candidate with the highest score."""
    match strategy:
        case "sampled":
            return similarity + _gumbel(similarity, generator)
        case "uniform":
            return _gumbel(similarity, generator)
        case "hardest" | "teacher":
            return similarity
        case "semi_hard":
            below_BB = ~exclude & (similarity < similarity.diagonal()[:, None])
            semi_hard_BB = similarity.masked_fill(~below_BB, -math.inf)
            return torch.where(below_BB.any(dim=1, keepdim=True), semi_hard_BB, -similarity)
        case "annealed":
            if progress is None:
                raise UserError("mine_negatives: annealed needs progress, the share of the training done; pass it")
            # κ·similarity + noise, times 1 − progress: the same choice, and finite where κ is not.
            return progress * similarity + (1 - progress) * _gumbel(similarity, generator)
        case _:
            known = ", ".join(get_args(MiningStrategy))
            raise UserError(f"mine_negatives: unknown strategy {strategy!r}; choose one of {known}")


def _gumbel(like: Tensor, generator: torch.Generator) -> Tensor:
    """Gumbel noise: the argmax of logits plus this noise is a sample of their softmax."""
    noise = torch.empty(like.shape, dtype=like.dtype, device=generator.device)
    return -noise.exponential_(generator=generator).log().to(like.device)


class PairMatchingHead(nn.Module):
    """The logit that a pair is matched.

    A linear map of [z_I; z_T] could not beat the prior: it is additive, and negatives that permute the batch
    leave its mean as it is. So both kinds see an interaction (**ours**, option ``loss.pair_head``):

    - ``product``: w·(z_I ⊙ z_T) + b, D + 1 parameters. w starts at 10 in every dimension (the initial scale
      of SigLIP, arXiv 2303.15343), so the first logit is 10·cosine + b. w is a vector, not a matrix: weight
      decay, which leaves vectors alone, would shrink so large a start.
    - ``mlp``: Linear, GELU, Linear on [z_I, z_T, |z_I − z_T|, z_I ⊙ z_T], hidden width D.

    The last bias starts at ln(1/2), the prior of one positive to two negatives.
    """

    def __init__(self, kind: PairHead, embed_dim: int) -> None:
        super().__init__()
        self.kind = kind
        match kind:
            case "product":
                self.weight = nn.Parameter(torch.full((embed_dim,), INITIAL_SCALE))
                self.bias = nn.Parameter(torch.tensor(PRIOR_LOGIT))
            case "mlp":
                self.hidden = nn.Linear(4 * embed_dim, embed_dim)
                self.output = nn.Linear(embed_dim, 1)
                nn.init.constant_(self.output.bias, PRIOR_LOGIT)
            case _:
                raise UserError(
                    f"PairMatchingHead: unknown kind {kind!r}; choose one of {', '.join(get_args(PairHead))}"
                )

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        """(N, D) and (N, D), L2-normalised → (N,) logits."""
        with torch.autocast(image.device.type, enabled=False):
            image, text, _ = full_precision(image, text, next(self.parameters()))
            if self.kind == "product":
                return (image * text) @ self.weight.to(image.dtype) + self.bias
            pair_NE = torch.cat([image, text, (image - text).abs(), image * text], dim=1)
            logit_N1: Tensor = self.output(F.gelu(self.hidden(pair_NE)))
            return logit_N1.squeeze(1)


class PairMatchingOutput(NamedTuple):
    """Scalars of `pair_matching_loss`; only the loss carries a gradient.

    The accuracies are the shares of the positives with a logit above 0 and of the negatives with one at or
    below it; ``negative_accuracy`` is nan where no row has a negative. ``dropped`` (int64) is how many of the
    2B negatives are missing.
    """

    loss: Tensor
    positive_accuracy: Tensor
    negative_accuracy: Tensor
    dropped: Tensor


def pair_matching_loss(
    image: Tensor, text: Tensor, head: nn.Module, *, text_negatives: Tensor, image_negatives: Tensor
) -> PairMatchingOutput:
    """Mean binary cross-entropy over 3B pairs: each matched pair, each image with its negative text, each
    text with its negative image. A negative of index -1 is left out of the mean and counted.

    Args:
        image, text: (B, D).
        head: maps (N, D), (N, D) to (N,) logits.
        text_negatives: (B,) long, for image i the index of a text that does not match it, or -1.
        image_negatives: (B,) long, for text i the index of an image that does not match it, or -1.
    """
    with torch.autocast(image.device.type, enabled=False):
        image, text = full_precision(image, text)
        kept_2B = torch.cat([text_negatives, image_negatives]) >= 0
        positive_B = head(image, text)
        negative_2B = torch.cat(
            [head(image, text[text_negatives.clamp(min=0)]), head(image[image_negatives.clamp(min=0)], text)]
        )
        # Missing negatives get weight 0 and are not selected away: a selection would wait for the device.
        loss_sum = F.softplus(-positive_B).sum() + (F.softplus(negative_2B) * kept_2B).sum()
        return PairMatchingOutput(
            loss=loss_sum / (len(image) + kept_2B.sum()),
            positive_accuracy=(positive_B > 0).float().mean(),
            negative_accuracy=((negative_2B <= 0) & kept_2B).sum() / kept_2B.sum(),
            dropped=(~kept_2B).sum(),
        )
