"""The operations and the memory of a training step, counted on the recipe's model.

Counted: operations, kept activations, weights and sizes of inputs and features. Assumed: the constants below, which
do not depend on the model. All in bf16 autocast.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from siclip.checkpoints.inherit import freeze_inherited
from siclip.config import LossConfig, ModelConfig, TrainingConfig
from siclip.diagnostics.describe import ModelDescription, describe_model
from siclip.models.clip import Clip
from siclip.training.step import TRUNK_CHUNK
from siclip_platform.plan.calibration import TeacherSource, teacher_config
from siclip_platform.recipes.recipe import Recipe

BACKWARD = 2
"""A layer's backward pass costs twice its forward pass: one product for the weights, one for the inputs."""
FRAMEWORK_BYTES = 700 * 2**20
"""CUDA context, libraries and the caching allocator's reserve. An assumption."""
TRUNK_MAPS = 3.375
"""Working memory of the folded trunk in addition to fp32 pixels.

Unit: bf16 maps of the stem's size (widths[0], size/2, size/2). It is 1.3 times the tensors that are alive at a time
in S0 and in nano. The rest is for the workspace of convolutions.
"""
SIMILARITIES = 14
"""(B, B) fp32 matrices that CLIP, CRD, ICL and PM hold at a time, with their gradients. An upper bound for fewer."""
BF16_BYTES = 2
FP32_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a training step computes and holds, per pair unless stated otherwise.

    Attributes:
        flops: floating-point operations; a multiply-add is two.
        traffic_bytes: what the activations move through the device's memory. Each is written and read once in the
            forward pass, and again in the backward pass if it is kept.
        activation_bytes: activations that are kept for the backward pass.
        fixed_bytes: weights, gradients and optimizer state; not per pair.
        image_size: px.
        embed_dim: width of the embeddings.
        feature_bytes: the outputs of both trunks, see `feature_bytes`.
        trunk_bytes: working memory of the frozen image trunk, see `trunk_bytes`.
        trunk_is_frozen: whether no weight of the trunks is trained.
        teacher: where the targets of distillation come from.
    """

    flops: float
    traffic_bytes: float
    activation_bytes: float
    fixed_bytes: float
    image_size: int
    embed_dim: int
    feature_bytes: int
    trunk_bytes: float
    trunk_is_frozen: bool
    teacher: TeacherSource

    def memory(self, batch: int, micro_batch: int, workers: int = 1) -> dict[str, float]:
        """Part → bytes on the device of one worker.

        Args:
            batch: pairs per step of this worker.
            micro_batch: pairs whose activations are kept at a time.
            workers: number of workers; the loss of each sees the pairs of all.
        """
        pixels = self.image_size**2 * 3
        chunk = min(batch, TRUNK_CHUNK)
        return {
            "weights, gradients, optimizer": self.fixed_bytes,
            "activations kept": micro_batch * self.activation_bytes,
            "frozen trunk at work": chunk * self.trunk_bytes if self.trunk_is_frozen else 0.0,
            "images and features": batch * (pixels + (self.feature_bytes if self.trunk_is_frozen else 0)),
            "similarities": SIMILARITIES * (workers * batch) ** 2 * float(FP32_BYTES),
            "framework": float(FRAMEWORK_BYTES),
        }


def feature_bytes(config: ModelConfig) -> int:
    """bf16 outputs of both trunks for a pair: (C, h, w) of the image tower's last stage, (T, W) of the text tower."""
    image, text = config.image, config.text
    # The stem divides the side by 4, every stage after the first by 2; strided convolutions round up.
    side = math.ceil(image.image_size / (1 << (len(image.widths) + 1)))
    return BF16_BYTES * (image.widths[-1] * side**2 + text.context_length * text.width)


def trunk_bytes(config: ModelConfig) -> float:
    """Working memory of the folded image trunk per image: fp32 pixels and `TRUNK_MAPS` maps."""
    size = config.image.image_size
    return FP32_BYTES * 3 * size**2 + TRUNK_MAPS * BF16_BYTES * config.image.widths[0] * (size / 2) ** 2


def count_work(recipe: Recipe, model: Clip, teacher: TeacherSource) -> Work:
    """Count a step of a recipe.

    Args:
        recipe: the training.
        model: a newly built model of it; it is not changed.
        teacher: where the targets of distillation come from.
    """
    model = copy.deepcopy(model)
    if recipe.model.inherit:
        freeze_inherited(model, recipe.model.freeze)
    found = describe_model(model)
    kept = found.total.activation_bytes
    return Work(
        flops=_step_flops(recipe, model, teacher),
        traffic_bytes=4.0 * kept + 2.0 * _all_activations(model),
        activation_bytes=float(kept),
        fixed_bytes=_fixed(found, recipe.training, recipe.loss, teacher),
        image_size=model.config.image.image_size,
        embed_dim=model.config.embed_dim,
        feature_bytes=feature_bytes(model.config),
        trunk_bytes=trunk_bytes(model.config),
        trunk_is_frozen=model.trunk_is_frozen(),
        teacher=teacher,
    )


def _step_flops(recipe: Recipe, student: Clip, source: TeacherSource) -> float:
    """Operations per pair: forward passes as they run in training, backward passes at `BACKWARD` times that.

    Behind a frozen trunk the head's frozen layers count as if they trained: gradients flow through them.
    """
    # The backward passes are not counted: torch's counter mistakes those of depthwise convolutions for dense ones.
    trunk, head = forward_flops(student)
    trained = head if student.trunk_is_frozen() else trunk + head
    total = trunk + head + BACKWARD * trained
    if recipe.training.micro_batch_size not in (0, recipe.training.batch_size):
        total += trained  # gradient caching runs the forward pass twice
    if source in ("online", "shared trunk"):
        trunk, head = forward_flops(Clip(teacher_config(student.config.name)))
        total += head if source == "shared trunk" else trunk + head
    return total


def forward_flops(model: Clip) -> tuple[float, float]:
    """Operations per pair in train form: (both trunks, both heads)."""
    model = copy.deepcopy(model).requires_grad_(False).eval()
    image, text = model.config.image, model.config.text
    images = torch.zeros(1, 3, image.image_size, image.image_size)
    tokens = torch.zeros(1, text.context_length, dtype=torch.long)
    counts: list[float] = []
    with torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            features = model.trunk(images, tokens)
        counts.append(counter.get_total_flops())
        with FlopCounterMode(display=False) as counter:
            model.head(features, tokens)
        counts.append(counter.get_total_flops())
    return counts[0], counts[1]


def _all_activations(model: Clip) -> float:
    """Bytes of all activations of a forward pass: those that would be kept if everything trained."""
    free = copy.deepcopy(model)
    for parameter in free.parameters():
        parameter.requires_grad_(True)
    return float(describe_model(free).total.activation_bytes)


def _fixed(found: ModelDescription, training: TrainingConfig, loss: LossConfig, teacher: TeacherSource) -> float:
    numbers = (
        found.total.parameters + 3 * found.total.trainable_parameters
    )  # weight; gradient and AdamW's two moments
    if training.ema_decay:
        numbers += found.total.trainable_parameters
    if loss.distils and teacher in ("online", "shared trunk"):
        numbers += found.total.parameters
    return float(FP32_BYTES * numbers)
