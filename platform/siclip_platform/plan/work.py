"""What a training step of a recipe computes and holds, counted on the model itself."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from siclip.checkpoints.inherit import freeze_inherited
from siclip.config import LossConfig, TrainingConfig
from siclip.diagnostics.describe import ModelDescription, describe_model
from siclip.models.clip import Clip
from siclip.training.step import TRUNK_CHUNK
from siclip_platform.plan.calibration import TeacherSource, teacher_config
from siclip_platform.recipes.recipe import Recipe

BACKWARD = 2
"""A layer's backward pass takes twice its forward pass: one product for the weights, one for the inputs."""
FRAMEWORK_BYTES = 700 * 2**20
"""CUDA context, libraries and what the caching allocator keeps beyond what is asked for."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """Of one pair, unless it says otherwise. ``flops``: floating-point operations of a training step (a multiply-add
    is two). ``traffic_bytes``: what the activations move through the device's memory, each written once and read
    once in the forward pass, and again in the backward pass where it is kept. ``activation_bytes``: kept for the
    backward pass. ``fixed_bytes``: weights, gradients and optimizer state, whatever the batch. ``image_size``: px.
    """

    flops: float
    traffic_bytes: float
    activation_bytes: float
    fixed_bytes: float
    image_size: int
    embed_dim: int
    trunk_is_frozen: bool
    teacher: TeacherSource

    def memory(self, batch: int, micro_batch: int, workers: int = 1) -> dict[str, float]:
        """Part → bytes on a worker's device for a step of ``batch`` pairs of its own, ``micro_batch`` at a time.

        The loss sees the pairs of all workers, on each of them.
        """
        pixels = self.image_size**2 * 3
        chunk = min(batch, TRUNK_CHUNK)
        return {
            "weights, gradients, optimizer": self.fixed_bytes,
            "activations kept": micro_batch * self.activation_bytes,
            "frozen trunk at work": chunk * TRUNK_WORK * pixels if self.trunk_is_frozen else 0.0,
            "images and features": batch * (pixels + (FEATURE_BYTES if self.trunk_is_frozen else 0)),
            "similarities": SIMILARITIES * (workers * batch) ** 2 * 4.0,
            "framework": float(FRAMEWORK_BYTES),
        }


FEATURE_BYTES = 64 * 2**10 + 77 * 1024
"""bf16 outputs of both trunks of S0 for a pair: 512 × 8 × 8 and 77 × 512."""
TRUNK_WORK = 40
"""Bytes at work in a frozen trunk for each byte of its uint8 image: fp32 pixels, and two bf16 maps of 64 × 128²."""
SIMILARITIES = 14
"""(B, B) fp32 matrices held at a time by CLIP, CRD, ICL and PM with their gradients."""


def count_work(recipe: Recipe, model: Clip, teacher: TeacherSource) -> Work:
    """Count a step of a recipe on ``model``, one freshly built, which is left as it is."""
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
        trunk_is_frozen=model.trunk_is_frozen(),
        teacher=teacher,
    )


def _step_flops(recipe: Recipe, student: Clip, source: TeacherSource) -> float:
    """Of one pair: forward passes as they run in training, and backward passes at twice their forward pass.

    Counted so, since torch's counter takes the backward pass of a depthwise convolution for a dense one. Behind a
    frozen trunk the head's frozen layers count as if they trained: gradients flow through them.
    """
    trunk, head = forward_flops(student)
    trained = head if student.trunk_is_frozen() else trunk + head
    total = trunk + head + BACKWARD * trained
    if recipe.training.micro_batch_size not in (0, recipe.training.batch_size):
        total += trained  # gradient caching encodes twice
    if source in ("online", "shared trunk"):
        trunk, head = forward_flops(Clip(teacher_config(student.config.name)))
        total += head if source == "shared trunk" else trunk + head
    return total


def forward_flops(model: Clip) -> tuple[float, float]:
    """Of one pair in train form: (what comes before the attention blocks of both towers, the rest)."""
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
    """Bytes of every activation of a forward pass: what would be kept if everything trained."""
    free = copy.deepcopy(model)
    for parameter in free.parameters():
        parameter.requires_grad_(True)
    return float(describe_model(free).total.activation_bytes)


def _fixed(found: ModelDescription, training: TrainingConfig, loss: LossConfig, teacher: TeacherSource) -> float:
    numbers = found.total.parameters + 3 * found.total.trainable_parameters  # weight; gradient and AdamW's two
    if training.ema_decay:
        numbers += found.total.trainable_parameters
    if loss.distils and teacher in ("online", "shared trunk"):
        numbers += found.total.parameters
    return 4.0 * numbers
