"""The operations and the memory of a training step, from what `counted` says of its models.

Counted: operations, kept activations, weights and sizes of inputs and features. Assumed: the constants below, which
do not depend on the model. All in bf16 autocast. `exact` counts the memory of a whole step instead, and is what these
constants are tested with.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from siclip.config import LossConfig, ModelConfig, TrainingConfig
from siclip.models.registry import base_of, model_config
from siclip_platform.plan.counted import COUNTED, Frozen, ModelWork
from siclip_platform.plan.job import TeacherSource
from siclip_platform.recipes.recipe import Recipe
from siclip_platform.recipes.student import recipe_model
from siclip_platform.storage.hashing import canonical_hash

BACKWARD = 2
"""A layer's backward pass costs twice its forward pass: one product for the weights, one for the inputs."""
FRAMEWORK_BYTES = 700 * 2**20
"""CUDA context, libraries and the caching allocator's reserve. An assumption."""
TRUNK_CHUNK = 128
"""Samples that run through a frozen trunk or a teacher at a time: `siclip.training.step.TRUNK_CHUNK`."""
TRUNK_MAPS = 3.375
"""Working memory of the folded trunk in addition to fp32 pixels.

Unit: bf16 maps of the stem's size (widths[0], size/2, size/2). It is 1.3 times the tensors that are alive at a time
in S0 and in nano. The rest is for the workspace of convolutions.
"""
SIMILARITIES = 14
"""(B, B) fp32 matrices that CLIP, CRD, ICL and PM hold at a time, with their gradients. An upper bound for fewer."""
BF16_BYTES = 2
FP32_BYTES = 4
ACTIVATIONS = "activations kept"
TRUNK_AT_WORK = "frozen trunk at work"
SIMILARITY_PART = "similarities"


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a training step computes and holds, per pair unless stated otherwise.

    Attributes:
        flops: floating-point operations; a multiply-add is two.
        forward_flops: of a forward pass of the student alone.
        trunk_flops: of a forward pass of its trunks alone.
        teacher_flops: of a forward pass of the model that it inherits from.
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
    forward_flops: float
    trunk_flops: float
    teacher_flops: float
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
        """Part → bytes on the device of one worker, at the peak.

        The trunk is at work before the first activations are kept, so that only the larger of the two counts.

        Args:
            batch: pairs per step of this worker.
            micro_batch: pairs whose activations are kept at a time.
            workers: number of workers; the loss of each sees the pairs of all.
        """
        pixels = self.image_size**2 * 3
        kept = {
            ACTIVATIONS: micro_batch * self.activation_bytes,
            SIMILARITY_PART: SIMILARITIES * (workers * batch) ** 2 * float(FP32_BYTES),
        }
        trunk = min(batch, TRUNK_CHUNK) * self.trunk_bytes if self.trunk_is_frozen else 0.0
        return {
            "weights, gradients, optimizer": self.fixed_bytes,
            **(kept if sum(kept.values()) >= trunk else {TRUNK_AT_WORK: trunk}),
            "images and features": batch * (pixels + (self.feature_bytes if self.trunk_is_frozen else 0)),
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


def teacher_config(student: str) -> ModelConfig:
    """The model that the student with this name inherits from: the same size, with attention blocks."""
    return model_config(base_of(student))


def model_work(config: ModelConfig) -> ModelWork:
    """The stored count of a model, or a new one."""
    stored = COUNTED.get(config.name)
    if stored is not None and stored.config == canonical_hash(config.model_dump(mode="json"), digits=12):
        return stored
    from siclip_platform.plan.counting import count_model

    return count_model(config)


def count_work(recipe: Recipe, teacher: TeacherSource) -> Work:
    """Count a step of a recipe.

    Args:
        recipe: the training.
        teacher: where the targets of distillation come from.
    """
    config = recipe_model(recipe)
    model, base = model_work(config), model_work(teacher_config(config.name))
    training, everything = recipe.training, model.frozen["none"]
    start = model.frozen[recipe.model.freeze] if recipe.model.inherit else everything
    # After a thaw everything trains: the memory is that of the end, the work that of both parts of the training.
    end = everything if training.thaw_step else start
    late = 1 - training.thaw_step / training.steps if training.thaw_step else 0.0

    def over_time(of: Callable[[Frozen], float]) -> float:
        return (1 - late) * of(start) + late * of(end)

    return Work(
        flops=over_time(lambda frozen: _step_flops(recipe, model, base, frozen, teacher)),
        forward_flops=float(model.trunk_flops + model.head_flops),
        trunk_flops=float(model.trunk_flops),
        teacher_flops=float(base.trunk_flops + base.head_flops),
        traffic_bytes=over_time(lambda frozen: 4.0 * frozen.activation_bytes) + 2.0 * everything.activation_bytes,
        activation_bytes=float(end.activation_bytes),
        fixed_bytes=_fixed(model, base, end, training, recipe.loss, teacher),
        image_size=config.image.image_size,
        embed_dim=config.embed_dim,
        feature_bytes=feature_bytes(config),
        trunk_bytes=trunk_bytes(config),
        trunk_is_frozen=end.trunk_is_frozen,
        teacher=teacher,
    )


def _step_flops(recipe: Recipe, student: ModelWork, base: ModelWork, frozen: Frozen, source: TeacherSource) -> float:
    """Operations per pair: forward passes as they run in training, backward passes at `BACKWARD` times that.

    Behind a frozen trunk the head's frozen layers count as if they trained: gradients flow through them.
    """
    # The backward passes are not counted: torch's counter mistakes those of depthwise convolutions for dense ones.
    trunk, head = student.trunk_flops, student.head_flops
    trained = head if frozen.trunk_is_frozen else trunk + head
    total = trunk + head + BACKWARD * trained
    if recipe.training.micro_batch_size not in (0, recipe.training.batch_size):
        total += trained  # gradient caching runs the forward pass twice
    if source in ("online", "shared trunk"):
        # Where the trunk trains there is none to share.
        shares = source == "shared trunk" and frozen.trunk_is_frozen
        total += base.head_flops if shares else base.trunk_flops + base.head_flops
    return float(total)


def _fixed(
    model: ModelWork,
    base: ModelWork,
    frozen: Frozen,
    training: TrainingConfig,
    loss: LossConfig,
    teacher: TeacherSource,
) -> float:
    numbers = model.parameters + 3 * frozen.trainable  # weight; gradient and AdamW's two moments
    if training.ema_decay:
        numbers += model.parameters
    if loss.needs_teacher and teacher in ("online", "shared trunk"):
        numbers += base.parameters
    return float(FP32_BYTES * numbers)
