"""Initialising SAS-P blocks by regression: each learns the output of the teacher's block at the same depth.

**ours**: arXiv 2411.14789 trains the new blocks only through distillation of the embeddings. Layer-by-layer
distillation of hidden states is from TinyBERT (arXiv 1909.10351). Here each block receives the teacher's input, so
that no block depends on the training of another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from siclip.config import ModelConfig, Precision
from siclip.data.batch import Batch, to_float_images
from siclip.errors import UserError
from siclip.models.clip import Clip


def check_blocks(student: ModelConfig, teacher: ModelConfig) -> None:
    """Check that every SAS-P block has a block of the teacher to learn from.

    Raises:
        UserError: the student has no SAS-P blocks, or the teacher's blocks differ in number or width.
    """
    shapes = {
        "image": [(config.image.layers[-1], config.image.widths[-1]) for config in (student, teacher)],
        "text": [(config.text.layers, config.text.width) for config in (student, teacher)],
    }
    if not any(getattr(student, tower).block == "sasp" for tower in shapes):
        raise UserError(f"{student.name!r} has no SAS-P blocks to initialise by regression: use a siclip model")
    for tower, (ours, theirs) in shapes.items():
        if getattr(student, tower).block == "sasp" and ours != theirs:
            raise UserError(
                f"block regression pairs each SAS-P block with a block of the teacher: the {tower} tower of "
                f"{student.name!r} has {ours[0]} blocks of width {ours[1]}, that of {teacher.name!r} {theirs[0]} "
                f"blocks of width {theirs[1]}; name a teacher with the same number and width, or omit the regression"
            )


def fit_blocks(
    student: Clip,
    teacher: Clip,
    batches: Iterable[Batch],
    *,
    learning_rate: float = 3e-3,
    precision: Precision = "fp32",
    micro_batch_size: int = 0,
) -> list[float]:
    """Fit every SAS-P block of the student to its teacher's block, in place, with one Adam step per batch.

    Block l receives the teacher's input to block l. Its loss is the mean squared distance to the teacher's output of
    block l, divided by the variance of that output: a loss of 1 is as good as predicting its mean. Only the unfrozen
    parameters of SAS-P blocks are updated, shared ones once on the sum of their blocks' losses. BatchNorms in these
    blocks use the statistics of the samples computed together. Nothing else in either model changes, and no random
    number is drawn.

    Args:
        student, teacher: on the same device; their modes are preserved.
        batches: with images.
        learning_rate: higher than in training, because a regression is meant to be short; 1e-2 was unstable on
            siclip-s0.
        precision: bf16 runs under autocast. fp16 is treated as fp32: without a gradient scaler it would underflow.
        micro_batch_size: samples whose activations are in memory at a time; 0: all. The gradients are those of the
            whole batch, except that BatchNorms use each part's statistics.

    Returns:
        For each batch the mean loss of the blocks before that batch's step.

    Raises:
        UserError: as `check_blocks`, every SAS-P block is frozen, or a batch has no images.
    """
    check_blocks(student.config, teacher.config)
    own = [block for _, blocks, _ in _towers(student, teacher) for block in blocks]
    trained = list(dict.fromkeys(p for block in own for p in block.parameters() if p.requires_grad))
    if not trained:
        raise UserError(f"every SAS-P block of {student.config.name!r} is frozen: there is nothing to fit")
    optimizer = torch.optim.Adam(trained, lr=learning_rate)
    device = student.logit_scale.device
    modes = student.training, teacher.training
    student.train()
    teacher.eval()
    losses = []
    try:
        for batch in batches:
            optimizer.zero_grad()
            parts = _BatchInParts(student, teacher, batch.to(device), precision, micro_batch_size)
            each = [loss.item() for loss in parts.losses()]
            optimizer.step()
            losses.append(sum(each) / len(each))
    finally:
        optimizer.zero_grad()
        student.train(modes[0])
        teacher.train(modes[1])
    return losses


class _BatchInParts:
    """The losses of a batch. In memory are the teacher's features of one block and the activations of one part."""

    def __init__(self, student: Clip, teacher: Clip, batch: Batch, precision: Precision, micro: int) -> None:
        if batch.images is None:
            raise UserError("block regression runs the teacher's trunk, so its batches need images")
        self.student, self.teacher = student, teacher
        self.micro = micro or len(batch)
        device = batch.tokens.device.type
        self.autocast = partial(torch.autocast, device, dtype=torch.bfloat16, enabled=precision == "bf16")
        self.trunk = {
            "image": self._teachers(lambda rows: teacher.image_encoder.trunk(to_float_images(rows)), batch.images),
            "text": self._teachers(teacher.text_encoder.trunk, batch.tokens),
        }

    def losses(self) -> Iterator[Tensor]:
        """The loss of each SAS-P block, after its gradient was added."""
        for tower, blocks, teacher_blocks in _towers(self.student, self.teacher):
            features = self.trunk[tower]
            for block, teacher_block in zip(blocks, teacher_blocks, strict=True):
                target = self._teachers(teacher_block, features)
                yield self._loss(block, features, target)
                features = target

    def _loss(self, block: nn.Module, features: Tensor, target: Tensor) -> Tensor:
        # Of the whole batch, so that the parts' losses sum to the batch's mean.
        scale = 1 / (target.float().var() * target.numel())
        total = torch.zeros((), device=target.device)
        for rows, expected in zip(torch.split(features, self.micro), torch.split(target, self.micro), strict=True):
            with self.autocast():
                output = block(rows)
            loss = F.mse_loss(output.float(), expected.float(), reduction="sum") * scale
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total

    @torch.no_grad()
    def _teachers(self, module: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
        with self.autocast():
            return torch.cat([module(rows) for rows in torch.split(inputs, self.micro)])


def _towers(student: Clip, teacher: Clip) -> Iterator[tuple[str, Iterable[nn.Module], Iterable[nn.Module]]]:
    """For each tower with SAS-P blocks: its name, its blocks and the teacher's blocks."""
    for tower in ("image", "text"):
        if getattr(student.config, tower).block == "sasp":
            yield tower, getattr(student, f"{tower}_encoder").blocks, getattr(teacher, f"{tower}_encoder").blocks
