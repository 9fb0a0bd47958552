"""The three distillation losses of WIKD (SiCLIP, arXiv 2411.14789), defined in CLIP-KD (arXiv 2307.12732).

B pairs, D dimensions. Embeddings are L2-normalised, logit scales are exponentiated values. The teacher's
tensors are constants: no gradient reaches them. All arithmetic is fp32 (fp64 for fp64 inputs) under any
autocast.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from siclip.errors import UserError
from siclip.losses.precision import full_precision


def feature_distillation_loss(image: Tensor, text: Tensor, teacher_image: Tensor, teacher_text: Tensor) -> Tensor:
    """FD: mean over B·D of (z_I − t_I)² plus the same for text.

    Args:
        image, text: (B, D) of the student.
        teacher_image, teacher_text: (B, D) of the teacher.

    Raises:
        UserError: student and teacher differ in shape (a mean over broadcast rows would be meaningless).
    """
    for modality, student, teacher in (("image", image, teacher_image), ("text", text, teacher_text)):
        if student.shape != teacher.shape:
            raise UserError(
                f"feature_distillation_loss: {modality} is {tuple(student.shape)} of the student, "
                f"{tuple(teacher.shape)} for the teacher; project the student to that width first"
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

    The teacher's distribution is the first argument of KL. The factor τ² keeps the gradient's size
    independent of the temperature (arXiv 1503.02531); the widths of student and teacher may differ.

    Args:
        image, text: (B, D_s) of the student.
        teacher_image, teacher_text: (B, D_t) of the teacher.
        logit_scale, teacher_logit_scale: scalars s and t.
        temperature: τ > 0, dividing both models' logits.
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
    """ICL: ½[CE(c·z_I t_Tᵀ, i) + CE(c·z_T t_Iᵀ, i)].

    Args:
        image, text: (B, D) of the student.
        teacher_image, teacher_text: (B, D) of the teacher.
        logit_scale: scalar c, learned apart from the student's own scale.
    """
    with torch.autocast(image.device.type, enabled=False):
        image, text, teacher_image, teacher_text, logit_scale = full_precision(
            image, text, teacher_image, teacher_text, logit_scale
        )
        target_B = torch.arange(len(image), device=image.device)
        image_side = F.cross_entropy(logit_scale * image @ teacher_text.detach().T, target_B)
        text_side = F.cross_entropy(logit_scale * text @ teacher_image.detach().T, target_B)
        return (image_side + text_side) / 2
