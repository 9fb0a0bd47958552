"""Pair matching (PM; SiCLIP, arXiv 2411.14789): classify matched pairs against similar mismatched ones.

Shapes: B samples, D dimensions, N candidate pairs. Embeddings are L2-normalised. All arithmetic is fp32 (fp64 for
fp64 inputs) under any autocast.
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
"""The logit of the prior: one positive to two negatives."""


def false_negative_mask(
    image_ids: Tensor, caption_ids: Tensor, teacher_text: Tensor | None = None, threshold: float = 0.9
) -> Tensor:
    """The pairs that must not serve as negatives: (B, B) bool, symmetric, True on the diagonal.

    True where two samples have the same image id, the same caption id, or a teacher text-text cosine strictly above
    the threshold.

    Args:
        image_ids, caption_ids: (B,) integer.
        teacher_text: (B, D_t), L2-normalised; None: only the ids count.
        threshold: a cosine.
    """
    mask_BB = (image_ids[:, None] == image_ids) | (caption_ids[:, None] == caption_ids)
    if teacher_text is not None:
        with torch.no_grad(), torch.autocast(teacher_text.device.type, enabled=False):
            (text,) = full_precision(teacher_text)
            close_BB = text @ text.T > threshold
        # A matrix product is not exactly symmetric near the threshold; the mask must be.
        mask_BB = mask_BB | close_BB | close_BB.T
    return mask_BB


@torch.no_grad()
def mine_negatives(
    similarity: Tensor,
    strategy: MiningStrategy,
    *,
    exclude: Tensor,
    generator: torch.Generator | None,
    progress: float | None = None,
) -> Tensor:
    """One negative per query: (B,) long, the candidate's index, or -1 if a row has none. No gradient.

    - ``sampled``: j with p(j|i) ∝ exp(similarity_ij) over the candidates that are not excluded.
    - ``uniform``: each of them with the same probability.
    - ``hardest``: the most similar one.
    - ``semi_hard``: the most similar one that is less similar than the positive (FaceNet, arXiv 1503.03832); if
      there is none, the least similar candidate.
    - ``teacher``: ``hardest`` on the teacher's similarity, which the caller passes.
    - ``annealed``: from ``uniform`` to ``hardest`` over the training (**ours**): p(j|i) ∝ exp(κ·similarity_ij) with
      κ = progress / (1 − progress), so ``uniform`` at 0, ``sampled`` at ½ and ``hardest`` at 1.

    Args:
        similarity: (B, B); row i is a query, column i its positive. For ``sampled`` and ``annealed`` it is scaled by
            the logit scale.
        strategy: one of the above.
        exclude: (B, B) bool, pairs that must not be negatives; the diagonal is always excluded.
        generator: the only source of randomness. It draws on its own device, so that a CPU generator gives the same
            draws for a similarity on any device. None: torch's default generator of the similarity's device.
        progress: share of the training completed, 0 to 1; only ``annealed`` needs it.

    Raises:
        UserError: a wrong shape, an unknown strategy, a progress outside 0 to 1, or none for ``annealed``.
    """
    if not similarity.shape == exclude.shape == (len(similarity), len(similarity)):
        raise UserError(
            f"mine_negatives: similarity {tuple(similarity.shape)} and exclude {tuple(exclude.shape)} must "
            "both be (B, B)"
        )
    if progress is not None and not 0 <= progress <= 1:
        raise UserError(
            f"mine_negatives: progress {progress} must be between 0 and 1, the share of the training completed"
        )
    (similarity,) = full_precision(similarity)
    exclude = exclude | torch.eye(len(exclude), dtype=torch.bool, device=exclude.device)
    score_BB = _scores(similarity, strategy, exclude, generator, progress).masked_fill(exclude, -math.inf)
    return score_BB.argmax(dim=1).masked_fill(exclude.all(dim=1), -1)


def _scores(
    similarity: Tensor,
    strategy: MiningStrategy,
    exclude: Tensor,
    generator: torch.Generator | None,
    progress: float | None,
) -> Tensor:
    """(B, B): for each query the strategy chooses the candidate with the highest score."""
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
                raise UserError(
                    "mine_negatives: annealed needs progress, the share of the training completed; pass it"
                )
            # κ·similarity + noise, multiplied by 1 − progress: the same argmax, and finite when κ is infinite.
            return progress * similarity + (1 - progress) * _gumbel(similarity, generator)
        case _:
            known = ", ".join(get_args(MiningStrategy))
            raise UserError(f"mine_negatives: unknown strategy {strategy!r}; choose one of {known}")


def _gumbel(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Gumbel noise: the argmax of logits plus this noise is a sample from their softmax."""
    noise = torch.empty(like.shape, dtype=like.dtype, device=generator.device if generator else like.device)
    return -noise.exponential_(generator=generator).log().to(like.device)


class PairMatchingHead(nn.Module):
    """The logit that a pair is matched.

    A linear map of [z_I; z_T] cannot beat the prior: it is additive, and negatives that permute the batch do not
    change its mean. Both heads therefore have an interaction term (**ours**, option ``loss.pair_head``):

    - ``product``: w·(z_I ⊙ z_T) + b, D + 1 parameters. w starts at 10 in every dimension (SigLIP's initial scale,
      arXiv 2303.15343), so the first logit is 10·cosine + b. w is a vector because weight decay, which does not
      apply to vectors, would shrink so large an initial value.
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
    """Scalars of `pair_matching_loss`; only the loss has a gradient.

    Attributes:
        positive_accuracy: share of the positives with a logit above 0.
        negative_accuracy: share of the negatives with a logit of at most 0; nan if no row has a negative.
        dropped: int64, how many of the 2B negatives are missing.
        generated_accuracy: as ``negative_accuracy``, of the generated false captions alone; None without any.
    """

    loss: Tensor
    positive_accuracy: Tensor
    negative_accuracy: Tensor
    dropped: Tensor
    generated_accuracy: Tensor | None = None


class ChosenFalse(NamedTuple):
    """A generated false caption for each image: ``text`` (B, D), and ``used`` (B,) bool, whether it is a negative."""

    text: Tensor
    used: Tensor


@torch.no_grad()
def choose_generated(kinds: Tensor, share: float, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Which images get a generated false caption as their negative text, and which of theirs.

    Args:
        kinds: (B, K), negative where a sample has no further false caption.
        share: the probability that an image with false captions gets one of them.
        generator: the only source of randomness, as in `mine_negatives`.

    Returns:
        (B,) long, the index of one of the K, each with the same probability; (B,) bool, whether it is used.
    """
    device = generator.device if generator else kinds.device
    noise = torch.rand((len(kinds), kinds.shape[1] + 1), generator=generator, device=device).to(kinds.device)
    present = kinds >= 0
    which = noise[:, 1:].masked_fill(~present, -1.0).argmax(dim=1)
    return which, (noise[:, 0] < share) & present.any(dim=1)


def pair_matching_loss(
    image: Tensor,
    text: Tensor,
    head: nn.Module,
    *,
    text_negatives: Tensor,
    image_negatives: Tensor,
    generated: ChosenFalse | None = None,
) -> PairMatchingOutput:
    """Mean binary cross-entropy over 3B pairs (arXiv 2411.14789).

    The pairs are each matched pair, each image with its negative text and each text with its negative image. A
    negative with index -1 is excluded from the mean and counted as dropped.

    Args:
        image, text: (B, D).
        head: maps (N, D), (N, D) to (N,) logits.
        text_negatives: (B,) long, for image i the index of a text that does not match it, or -1.
        image_negatives: (B,) long, for text i the index of an image that does not match it, or -1.
        generated: false captions that take the place of an image's negative text.
    """
    with torch.autocast(image.device.type, enabled=False):
        image, text = full_precision(image, text)
        kept_2B = torch.cat([text_negatives, image_negatives]) >= 0
        positive_B = head(image, text)
        # A missing negative has index -1; any valid index will do, because its weight is 0.
        false_BD = text[text_negatives.clamp(min=0)]
        if generated is not None:
            false_BD = torch.where(generated.used[:, None], generated.text.to(text.dtype), false_BD)
            kept_2B = kept_2B | torch.cat([generated.used, torch.zeros_like(generated.used)])
        negative_2B = torch.cat([head(image, false_BD), head(image[image_negatives.clamp(min=0)], text)])
        # Missing negatives get weight 0 instead of being filtered out: a filter would synchronise with the device.
        loss_sum = F.softplus(-positive_B).sum() + (F.softplus(negative_2B) * kept_2B).sum()
        return PairMatchingOutput(
            loss=loss_sum / (len(image) + kept_2B.sum()),
            positive_accuracy=(positive_B > 0).float().mean(),
            negative_accuracy=((negative_2B <= 0) & kept_2B).sum() / kept_2B.sum(),
            dropped=(~kept_2B).sum(),
            generated_accuracy=None
            if generated is None
            else ((negative_2B[: len(image)] <= 0) & generated.used).sum() / generated.used.sum(),
        )
