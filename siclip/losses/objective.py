"""The training objective of SiCLIP (arXiv 2411.14789): the weighted sum of its losses, and their parameters.

Shapes: B samples, D_s and D_t dimensions of student and teacher, K generated false captions of a sample.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from siclip.config import LossConfig
from siclip.data.negatives import KINDS
from siclip.errors import UserError
from siclip.losses.contrastive import FalseColumns, SiglipLoss, capped_scale, contrastive_loss, hinge_loss
from siclip.losses.distillation import (
    contrastive_relational_loss,
    feature_distillation_loss,
    interactive_contrastive_loss,
)
from siclip.losses.pair_matching import (
    ChosenFalse,
    PairMatchingHead,
    choose_generated,
    false_negative_mask,
    mine_negatives,
    pair_matching_loss,
)
from siclip.losses.precision import full_precision

# CLIP's initial temperature of 0.07 (arXiv 2103.00020, section 2.5).
INITIAL_LOG_SCALE = math.log(1 / 0.07)


@dataclass(frozen=True, eq=False)
class Embeddings:
    """A model's output for a batch: ``image`` and ``text`` (B, D), L2-normalised; ``logit_scale``, exponentiated."""

    image: Tensor
    text: Tensor
    logit_scale: Tensor


@dataclass(frozen=True, eq=False)
class PairIds:
    """Ids of the images and captions of a batch, (B,) int64: equal where two samples share one."""

    image: Tensor
    caption: Tensor


@dataclass(frozen=True, eq=False)
class GeneratedTexts:
    """Generated false captions of a batch, K of each sample.

    Attributes:
        text: the student's embeddings (B, K, D), L2-normalised.
        ids: (B, K) int64, equal to a caption's id where the text is the same.
        kinds: (B, K) int64, an index of `siclip.data.negatives.KINDS`; -1: there is no further one.
    """

    text: Tensor
    ids: Tensor
    kinds: Tensor


class Objective(nn.Module):
    """The weighted sum of the parts whose weight is above 0; the others are not computed.

    It owns the parameters that only training needs, which the optimizer must include. Each exists only if its part
    has a weight: SigLIP's scale and bias; the pair-matching head; the log of ICL's logit scale, which starts at
    ln(1/0.07) and is at most ln(100); for a teacher of another width, a linear map D_s → D_t per modality, without
    bias and orthogonal at the start. FD and ICL compare embeddings in the teacher's space, mapped and normalised
    again. CRD compares similarities, each computed in its model's own space.

    Args:
        config: weights and options of the parts.
        embed_dim: D_s.
        teacher_embed_dims: widths of the teacher's image and text embeddings; None without a teacher.

    Raises:
        UserError: every weight is 0; a part needs a teacher and there is none; or a part compares the teacher's
            images with its texts and their widths differ.
    """

    def __init__(self, config: LossConfig, embed_dim: int, teacher_embed_dims: tuple[int, int] | None) -> None:
        super().__init__()
        self.config = config
        self.now = config.at(0)
        self.embed_dim = embed_dim
        self.teacher_embed_dims = teacher_embed_dims
        if not (config.contrastive > 0 or config.distils or config.pair_matching > 0 or config.generated_hinge > 0):
            raise UserError("loss: every weight is 0, so there is nothing to train; set loss.contrastive above 0")
        if config.needs_teacher:
            _check_teacher(config, teacher_embed_dims)
        self.siglip = SiglipLoss() if config.contrastive > 0 and config.base == "siglip" else None
        self.pair_matching_head = PairMatchingHead(config.pair_head, embed_dim) if config.pair_matching > 0 else None
        self.interactive_logit_scale = (
            nn.Parameter(torch.tensor(INITIAL_LOG_SCALE)) if config.interactive_contrastive > 0 else None
        )
        # CRD alone needs no projection: it compares similarities, not embeddings.
        image_dim = text_dim = embed_dim
        if teacher_embed_dims and (config.feature_distillation > 0 or config.interactive_contrastive > 0):
            image_dim, text_dim = teacher_embed_dims
        self.image_projection = _projection(embed_dim, image_dim)
        self.text_projection = _projection(embed_dim, text_dim)

    def begin(self, step: int) -> None:
        """Use the schedule's weights for the step after ``step`` completed optimizer steps."""
        if self.config.schedule:
            self.now = self.config.at(step)

    def forward(
        self,
        student: Embeddings,
        teacher: Embeddings | None,
        batch_ids: PairIds,
        generator: torch.Generator | None,
        *,
        progress: float = 0.0,
        generated: GeneratedTexts | None = None,
    ) -> dict[str, Tensor]:
        """Scalars by name. ``loss``, the weighted sum, has a gradient; all others are detached.

        - Parts, each if its weight is above 0: ``contrastive``, ``feature_distillation``,
          ``contrastive_relational``, ``interactive_contrastive``, ``pair_matching``, ``generated_hinge``, and again
          as ``weighted/<part>``, the summand in the loss.
        - With SigLIP: ``siglip_scale`` (t) and ``siglip_bias``, as used in the loss.
        - With pair matching: ``pair_positive_accuracy``, ``pair_negative_accuracy``, ``pair_dropped`` (see
          `PairMatchingOutput`) and ``pair_masked_share``, the share of off-diagonal pairs masked as false negatives.
          Of these, ``pair_masked_by_teacher`` are masked by the similarity of the teacher's texts alone, which counts
          if there is a teacher and ``LossConfig.masks_by_teacher``; the others by their ids.
        - With generated false captions in pair matching: ``pair_generated_accuracy``.
        - With those of the whole batch as columns: ``generated_masked/<kind>``, the share of columns of a kind that
          are masked because the text is a true caption of the image.

        Args:
            student, teacher: their embeddings of the batch.
            batch_ids: for the mask of false negatives.
            generator: the only source of randomness, used by the miners ``sampled``, ``uniform`` and ``annealed``;
                None: torch's default generator of the embeddings' device.
            progress: share of the training completed before this step, 0 to 1; used by the miner ``annealed`` and
                the warm-up of pair matching.
            generated: false captions; needed if ``LossConfig.uses_generated``.

        Raises:
            UserError: a missing teacher, missing false captions, a width other than the one announced, or pair
                matching with a progress outside 0 to 1.
        """
        self._check_batch(student, teacher)
        if not self.config.uses_generated:
            generated = None
        elif generated is None:
            raise UserError(
                "loss: a part uses generated false captions and the batch has none: name a set with data.negatives, "
                "or set loss.generated_columns to none and loss.generated_hinge and loss.generated_share to 0"
            )
        parts, diagnostics = dict[str, Tensor](), dict[str, Tensor]()
        if self.config.contrastive > 0:
            parts["contrastive"], diagnostics = self._contrastive(student, batch_ids, generated)
        if self.config.generated_hinge > 0 and generated is not None:
            own = _own_columns(generated, batch_ids)
            parts["generated_hinge"] = hinge_loss(student.image, student.text, own, self.config.generated_margin)
        if self.config.distils and teacher is not None:
            parts |= self._distillation(student, teacher)
        if self.pair_matching_head is not None:
            parts["pair_matching"], found = self._pair_matching(
                student, teacher, batch_ids, generator, progress, generated
            )
            diagnostics |= found
        weighted = {f"weighted/{name}": self._weight(name, progress) * part for name, part in parts.items()}
        loss = torch.stack(list(weighted.values())).sum()
        return {"loss": loss} | {name: value.detach() for name, value in (parts | weighted | diagnostics).items()}

    def _weight(self, part: str, progress: float) -> float:
        weight: float = getattr(self.now, part)
        warmup = self.config.pair_matching_warmup
        if part == "pair_matching" and warmup > 0:
            return weight * min(1.0, progress / warmup)
        return weight

    def _contrastive(
        self, student: Embeddings, batch_ids: PairIds, generated: GeneratedTexts | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        columns, found = None, dict[str, Tensor]()
        if generated is not None and self.config.generated_columns == "own":
            columns = _own_columns(generated, batch_ids)
        elif generated is not None and self.config.generated_columns == "batch":
            columns, found = _batch_columns(generated, batch_ids)
        if self.siglip is None:
            return contrastive_loss(student.image, student.text, student.logit_scale, columns), found
        loss = self.siglip(student.image, student.text, columns)
        # Copies, because the optimizer's step changes the parameters before the metrics are read.
        found |= {"siglip_scale": self.siglip.logit_scale.exp(), "siglip_bias": self.siglip.logit_bias.clone()}
        return loss, found

    def _distillation(self, student: Embeddings, teacher: Embeddings) -> dict[str, Tensor]:
        config, parts = self.config, {}
        image = _project(student.image, self.image_projection)
        text = _project(student.text, self.text_projection)
        if config.feature_distillation > 0:
            parts["feature_distillation"] = feature_distillation_loss(image, text, teacher.image, teacher.text)
        if config.contrastive_relational > 0:
            parts["contrastive_relational"] = contrastive_relational_loss(
                student.image,
                student.text,
                teacher.image,
                teacher.text,
                student.logit_scale,
                teacher.logit_scale,
                self.now.relational_temperature,
            )
        if self.interactive_logit_scale is not None:
            parts["interactive_contrastive"] = interactive_contrastive_loss(
                image, text, teacher.image, teacher.text, capped_scale(self.interactive_logit_scale)
            )
        return parts

    def _pair_matching(
        self,
        student: Embeddings,
        teacher: Embeddings | None,
        batch_ids: PairIds,
        generator: torch.Generator | None,
        progress: float,
        generated: GeneratedTexts | None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        assert self.pair_matching_head is not None
        same_BB = exclude_BB = false_negative_mask(batch_ids.image, batch_ids.caption)
        if teacher is not None and self.config.masks_by_teacher:
            threshold = self.config.false_negative_similarity
            exclude_BB = false_negative_mask(batch_ids.image, batch_ids.caption, teacher.text, threshold)
        miner = teacher if self.config.negatives == "teacher" and teacher is not None else student
        logits_BB = _logits(miner)

        def mine(queries_BB: Tensor) -> Tensor:
            return mine_negatives(
                queries_BB, self.config.negatives, exclude=exclude_BB, generator=generator, progress=progress
            )

        text_negatives, image_negatives = mine(logits_BB), mine(logits_BB.T)
        false = None
        # After mining, so that the mined negatives are those without generated ones.
        if generated is not None and self.config.generated_share > 0:
            which, used = choose_generated(generated.kinds, self.config.generated_share, generator)
            false = ChosenFalse(generated.text[torch.arange(len(which), device=which.device), which], used)
        output = pair_matching_loss(
            student.image,
            student.text,
            self.pair_matching_head,
            text_negatives=text_negatives,
            image_negatives=image_negatives,
            generated=false,
        )
        batch = len(exclude_BB)
        pairs = max(batch * (batch - 1), 1)
        found = {
            "pair_positive_accuracy": output.positive_accuracy,
            "pair_negative_accuracy": output.negative_accuracy,
            "pair_dropped": output.dropped,
            "pair_masked_share": (exclude_BB.sum() - batch) / pairs,
            "pair_masked_by_teacher": (exclude_BB.sum() - same_BB.sum()) / pairs,
        }
        if output.generated_accuracy is not None:
            found["pair_generated_accuracy"] = output.generated_accuracy
        return output.loss, found

    def _check_batch(self, student: Embeddings, teacher: Embeddings | None) -> None:
        if student.image.shape[1] != self.embed_dim:
            raise UserError(
                f"Objective: the student's embeddings have width {student.image.shape[1]}, but the objective was "
                f"built for {self.embed_dim}; build it with the model's embed_dim"
            )
        if teacher is None:
            if self.config.needs_teacher:
                raise UserError(
                    "Objective: the loss needs a teacher's embeddings and got none; pass them, or set the "
                    "distillation weights to 0 and loss.negatives to a strategy other than teacher"
                )
            return
        widths = (teacher.image.shape[1], teacher.text.shape[1])
        if self.config.needs_teacher and widths != self.teacher_embed_dims:
            raise UserError(
                f"Objective: the teacher's embeddings have widths {widths}, but the objective was built for "
                f"{self.teacher_embed_dims}; build it with this teacher's widths"
            )


def _check_teacher(config: LossConfig, teacher_embed_dims: tuple[int, int] | None) -> None:
    if teacher_embed_dims is None:
        raise UserError(
            "loss: a part with a weight above 0 needs a teacher and there is none; name a teacher, or set "
            "loss.feature_distillation, loss.contrastive_relational and loss.interactive_contrastive to 0 "
            "and loss.negatives to a strategy other than teacher"
        )
    image_dim, text_dim = teacher_embed_dims
    compares = (
        config.contrastive_relational > 0
        or config.interactive_contrastive > 0
        or (config.pair_matching > 0 and config.negatives == "teacher")
    )
    if compares and image_dim != text_dim:
        raise UserError(
            f"loss: the teacher's image embeddings have width {image_dim} and its text embeddings {text_dim}, so "
            "they cannot be compared; use a teacher with a single embedding space, or feature distillation alone"
        )


def _projection(embed_dim: int, teacher_dim: int) -> nn.Linear | None:
    if embed_dim == teacher_dim:
        return None
    projection = nn.Linear(embed_dim, teacher_dim, bias=False)
    nn.init.orthogonal_(projection.weight)
    return projection


def _project(embedding_BD: Tensor, projection: nn.Linear | None) -> Tensor:
    if projection is None:
        return embedding_BD
    with torch.autocast(embedding_BD.device.type, enabled=False):
        embedding_BD, weight = full_precision(embedding_BD, projection.weight)
        return F.normalize(F.linear(embedding_BD, weight), dim=1)


def _own_columns(generated: GeneratedTexts, ids: PairIds) -> FalseColumns:
    """Each image with its own false captions."""
    return FalseColumns(generated.text, (generated.kinds >= 0) & (generated.ids != ids.caption[:, None]))


def _batch_columns(generated: GeneratedTexts, ids: PairIds) -> tuple[FalseColumns, dict[str, Tensor]]:
    """Each image with the false captions of the whole batch, except those that are true captions of it.

    Returns:
        The columns, and the shares of each kind that are masked.
    """
    kinds_N, ids_N = generated.kinds.flatten(), generated.ids.flatten()
    same_image_BB = ids.image[:, None] == ids.image
    is_caption_BN = ids.caption[:, None] == ids_N
    # Row i counts the captions of image i, of whichever sample, that equal a text.
    true_BN = (same_image_BB.float() @ is_caption_BN.float()) > 0
    present_N = kinds_N >= 0
    masked_N = true_BN.float().mean(dim=0) * present_N
    # One sum per kind, without reading which kinds there are.
    of_kind_KN = kinds_N == torch.arange(len(KINDS), device=kinds_N.device)[:, None]
    shares = (of_kind_KN * masked_N).sum(dim=1) / of_kind_KN.sum(dim=1).clamp(min=1)
    found = {f"generated_masked/{kind}": share for kind, share in zip(KINDS, shares, strict=True)}
    return FalseColumns(generated.text.flatten(0, 1), present_N & ~true_BN), found


@torch.no_grad()
def _logits(embeddings: Embeddings) -> Tensor:
    """Scaled similarities (B, B) without gradient: rows are images, columns texts."""
    with torch.autocast(embeddings.image.device.type, enabled=False):
        image, text, scale = full_precision(embeddings.image, embeddings.text, embeddings.logit_scale)
        return scale * image @ text.T
