"""Starting SAS-P blocks by regression: each learns the output of the teacher's block in its place.

**ours**: arXiv 2411.14789 leaves the new blocks to distillation at the embeddings. Distilling hidden states layer by
layer is TinyBERT's (arXiv 1909.10351); here each block is given the teacher's input, so that none waits for another.
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
    """Whether every SAS-P block has a block of the teacher to learn from.

    Raises:
        UserError: the student has no SAS-P blocks, or the teacher's blocks differ in number or width.
    """
    shapes = {
        "image": [(config.image.layers[-1], config.image.widths[-1]) for config in (student, teacher)],
        "text": [(config.text.layers, config.text.width) for config in (student, teacher)],
    }
    if not any(getattr(student, tower).block == "sasp" for tower in shapes):
        raise UserError(f"{student.name!r} has no SAS-P blocks to start by regression: take a siclip model")
    for tower, (ours, theirs) in shapes.items():
        if getattr(student, tower).block == "sasp" and ours != theirs:
            raise UserError(
                f"block regression pairs each SAS-P block with one of the teacher: the {tower} tower of "
                f"{student.name!r} has {ours[0]} blocks {ours[1]} wide, that of {teacher.name!r} {theirs[0]} blocks "
                f"{theirs[1]} wide; name a teacher with as many, or leave the regression out"
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
    """Fit every SAS-P block of the student to its teacher's block, in place, one Adam step per batch.

    Block l is given the teacher's input to block l, and its loss is the mean squared distance to the teacher's
    output of block l, divided by that output's variance: 1 is as good as its mean. Only parameters of SAS-P blocks
    that are not frozen are stepped, shared ones once on the sum of their blocks' losses; the BatchNorms among them
    take the statistics of what is computed together. Nothing else of either model changes, no random number is drawn.

    Args:
        student, teacher: on the same device; their modes are kept.
        learning_rate: above that of training, for a regression is meant to be short; 1e-2 was unstable on siclip-s0.
        precision: bf16 runs under autocast. fp16 is taken as fp32: without a gradient scaler it would underflow.
        micro_batch_size: pairs whose activations are held at a time, 0: all; the gradients are the batch's but for
            the statistics of BatchNorms, which are each piece's own.

    Returns:
        The mean loss of the blocks, per batch, before that batch's step.

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
            pieces = _Pieces(student, teacher, batch.to(device), precision, micro_batch_size)
            each = [loss.item() for loss in pieces.losses()]
            optimizer.step()
            losses.append(sum(each) / len(each))
    finally:
        optimizer.zero_grad()
        student.train(modes[0])
        teacher.train(modes[1])
    return losses


class _Pieces:
    """The losses of a batch: the teacher's features are held for one block, activations for one piece of it."""

    def __init__(self, student: Clip, teacher: Clip, batch: Batch, precision: Precision, micro: int) -> None:
        if batch.images is None:
            raise UserError("block regression runs the teacher's own trunk: its batches need images")
        self.student, self.teacher = student, teacher
        self.micro = micro or len(batch)
        device = batch.tokens.device.type
        self.autocast = partial(torch.autocast, device, dtype=torch.bfloat16, enabled=precision == "bf16")
        self.trunk = {
            "image": self._teachers(lambda rows: teacher.image_encoder.trunk(to_float_images(rows)), batch.images),
            "text": self._teachers(teacher.text_encoder.trunk, batch.tokens),
        }

    def losses(self) -> Iterator[Tensor]:
        """The loss of each SAS-P block, its gradient already added."""
        for tower, blocks, teacher_blocks in _towers(self.student, self.teacher):
            features = self.trunk[tower]
            for block, teacher_block in zip(blocks, teacher_blocks, strict=True):
                target = self._teachers(teacher_block, features)
                yield self._loss(block, features, target)
                features = target

    def _loss(self, block: nn.Module, features: Tensor, target: Tensor) -> Tensor:
        scale = 1 / (target.float().var() * target.numel())
        total = torch.zeros((), device=target.device)
        for rows, wanted in zip(torch.split(features, self.micro), torch.split(target, self.micro), strict=True):
            with self.autocast():
                output = block(rows)
            loss = F.mse_loss(output.float(), wanted.float(), reduction="sum") * scale
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total

    @torch.no_grad()
    def _teachers(self, module: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
        with self.autocast():
            return torch.cat([module(rows) for rows in torch.split(inputs, self.micro)])


def _towers(student: Clip, teacher: Clip) -> Iterator[tuple[str, Iterable[nn.Module], Iterable[nn.Module]]]:
    """Name, SAS-P blocks and the teacher's blocks of each tower that has SAS-P blocks."""
    for tower in ("image", "text"):
        if getattr(student.config, tower).block == "sasp":
            yield tower, getattr(student, f"{tower}_encoder").blocks, getattr(teacher, f"{tower}_encoder").blocks
