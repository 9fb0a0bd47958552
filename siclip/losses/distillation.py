"""The three distillation losses of WIKD (SiCLIP, arXiv 2411.14789), defined in CLIP-KD (arXiv 2307.12732).

Shapes: B samples, D dimensions. Embeddings are L2-normalised; logit scales are exponentiated values. The teacher's
tensors receive no gradient. All arithmetic is fp32 (fp64 for fp64 inputs) under any autocast.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from siclip.errors import UserError
from siclip.losses.precision import full_precision


def feature_distillation_loss(image: Tensor, text: Tensor, teacher_image: Tensor, teacher_text: Tensor) -> Tensor:
    """FD: the mean over B·D of (z_I − t_I)², plus the same for text (arXiv 2307.12732).

    Args:
        image, text: the student's embeddings, (B, D).
        teacher_image, teacher_text: the teacher's, (B, D).

    Raises:
        UserError: student and teacher differ in shape (a mean over broadcast rows would be meaningless).
    """
    for modality, student, teacher in (("image", image, teacher_image), ("text", text, teacher_text)):
        if student.shape != teacher.shape:
            raise UserError(
                f"feature_distillation_loss: the student's {modality} embeddings have shape {tuple(student.shape)}, "
                f"the teacher's {tuple(teacher.shape)}; project the student to that width first"
            )
    with torch.autocast(image.device.type, enabled=False):
        image, text, teacher_image, teacher_text = full_precision(image, text, teacher_image, teacher_text)
        return F.mse_loss(image, teacher_image.detach()) + F.mse_loss(text, teacher_text.detach())


def contrastive_relational_loss(
    image: Tensor,
    text: Tensor,
    teacher_image: Tensor,
    teacher_text: Tensor,
    logit_scale: Tensor,
    teacher_logit_scale: Tensor,
    temperature: float = 1.0,
) -> Tensor:
    """CRD: τ²·½[KL(softmax(t·t_I t_Tᵀ/τ) ‖ softmax(s·z_I z_Tᵀ/τ)) + the text side], mean over rows.

    From arXiv 2307.12732. The teacher's distribution is the first argument of KL. The factor τ² makes the size of
    the gradient independent of the temperature (arXiv 1503.02531). Student and teacher may differ in width.

    Args:
        image, text: the student's embeddings, (B, D_s).
        teacher_image, teacher_text: the teacher's, (B, D_t).
        logit_scale, teacher_logit_scale: scalars s and t.
        temperature: τ > 0, divides the logits of both models.

    Raises:
        UserError: the temperature is not above 0.
    """
    if not temperature > 0:
        raise UserError(f"contrastive_relational_loss: temperature {temperature} must be above 0")
    with torch.autocast(image.device.type, enabled=False):
        image, text, logit_scale = full_precision(image, text, logit_scale)
        logits_BB = logit_scale * image @ text.T / temperature
        teacher_image, teacher_text, teacher_logit_scale, _ = full_precision(
            teacher_image, teacher_text, teacher_logit_scale, logits_BB
        )
        teacher_logits_BB = (teacher_logit_scale * teacher_image @ teacher_text.T / temperature).detach()
        both_sides = _kl(teacher_logits_BB, logits_BB) + _kl(teacher_logits_BB.T, logits_BB.T)
        return temperature**2 * both_sides / 2


def _kl(teacher_logits_BB: Tensor, logits_BB: Tensor) -> Tensor:
    """KL(softmax(teacher row) ‖ softmax(student row)), mean over rows."""
    teacher_BB, student_BB = teacher_logits_BB.log_softmax(dim=1), logits_BB.log_softmax(dim=1)
    return F.kl_div(student_BB, teacher_BB, reduction="batchmean", log_target=True)


def interactive_contrastive_loss(
    image: Tensor, text: Tensor, teacher_image: Tensor, teacher_text: Tensor, logit_scale: Tensor
) -> Tensor:
    """ICL: ½[CE(c·z_I t_Tᵀ, i) + CE(c·z_T t_Iᵀ, i)] (arXiv 2307.12732).

    Args:
        image, text: the student's embeddings, (B, D).
        teacher_image, teacher_text: the teacher's, (B, D).
        logit_scale: scalar c, learned separately from the student's scale.
    """
    with torch.autocast(image.device.type, enabled=False):
        image, text, teacher_image, teacher_text, logit_scale = full_precision(
            image, text, teacher_image, teacher_text, logit_scale
        )
        target_B = torch.arange(len(image), device=image.device)
        image_side = F.cross_entropy(logit_scale * image @ teacher_text.detach().T, target_B)
        text_side = F.cross_entropy(logit_scale * text @ teacher_image.detach().T, target_B)
        return (image_side + text_side) / 2
