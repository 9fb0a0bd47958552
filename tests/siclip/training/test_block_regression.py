"""SAS-P blocks fitted to the teacher's blocks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from siclip.checkpoints.inherit import inherit
from siclip.data.batch import Batch, to_float_images
from siclip.errors import UserError
from siclip.models import Clip, create_model
from siclip.models.sasp import SasPBlock
from siclip.training.block_regression import fit_blocks


def batches(count: int, first: int = 0, size: int = 8) -> Iterator[Batch]:
    for index in range(first, first + count):
        generator = torch.Generator().manual_seed(index)
        images = torch.randint(0, 256, (size, 64, 64, 3), generator=generator, dtype=torch.uint8)
        ids = torch.arange(size)
        yield Batch(images, torch.randint(1, 400, (size, 20), generator=generator), ids, ids)


def pair(**changes: object) -> tuple[Clip, Clip]:
    torch.manual_seed(5)
    teacher, student = create_model("mobileclip-nano"), create_model("siclip-nano", **changes)
    for module in teacher.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    inherit(student, teacher)
    return student, teacher


def sasp_blocks(model: Clip) -> list[nn.Module]:
    """One entry per position; a block at two positions occurs twice."""
    return [*model.image_encoder.blocks, *model.text_encoder.blocks]


def recorded(teacher: Clip, batch: Batch) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Input and output of each block in an ordinary forward pass of the teacher."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    hooks = [
        block.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
        for block in sasp_blocks(teacher)
    ]
    with torch.no_grad():
        teacher.eval()(to_float_images(batch.images), batch.tokens)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("sharing", [{}, {"image_sharing": "block:0-0", "text_sharing": "mlp:0-0-0-0"}])
def test_a_step_is_adam_on_the_sum_of_the_blocks_losses(sharing: dict) -> None:
    student, teacher = pair(**sharing)
    reference, _ = pair(**sharing)
    batch = next(batches(1))
    losses = []
    for block, (given, target) in zip(sasp_blocks(reference.train()), recorded(teacher, batch), strict=True):
        losses.append((block(given) - target).square().mean() / float(np.var(target.numpy().astype(np.float64))))
    trained = [p for p in reference.parameters() if p.requires_grad and p is not reference.logit_scale]
    optimizer = torch.optim.Adam(trained, lr=1e-3)
    torch.stack(losses).sum().backward()
    optimizer.step()

    (loss,) = fit_blocks(student, teacher, [batch], learning_rate=1e-3)
    assert loss == pytest.approx(torch.stack(losses).mean().item(), rel=1e-4)
    gradients = {name: p.grad for name, p in reference.named_parameters()}
    for (name, ours), theirs in zip(student.named_parameters(), reference.parameters(), strict=True):
        # Where a gradient is only rounding error, the sign of Adam's first step is random.
        sure = gradients[name] is None or gradients[name].abs() > 1e-6
        assert torch.where(torch.as_tensor(sure), (ours - theirs).abs(), 0).max() < 2e-5, name


def test_regression_brings_blocks_and_embeddings_closer_to_the_teachers() -> None:
    student, teacher = pair()
    plain, _ = pair()
    losses = fit_blocks(student, teacher, batches(25), learning_rate=1e-2)
    assert len(losses) == 25 and losses[-1] < 0.1 * losses[0]

    held_out = next(batches(1, first=1000, size=32))
    images, tokens = to_float_images(held_out.images), held_out.tokens
    # In train mode as in the first training step: in eval mode a BatchNorm that saw no batch would be the identity.
    with torch.no_grad():
        targets = teacher.eval()(images, tokens)
        fitted, started = student.train()(images, tokens), plain.train()(images, tokens)
    for ours, without, theirs in zip(fitted, started, targets, strict=True):
        assert F.mse_loss(ours, theirs) < 0.7 * F.mse_loss(without, theirs)


def test_only_trainable_parameters_of_sasp_blocks_change() -> None:
    student, teacher = pair(text={"sasp": {"trainable_gains": False}})
    frozen_block = student.text_encoder.blocks[3]
    frozen_block.mlp.requires_grad_(False)
    student.eval()
    flags = [p.requires_grad for p in student.parameters()]
    before = {name: value.clone() for name, value in student.state_dict().items()}
    theirs = {name: value.clone() for name, value in teacher.state_dict().items()}
    teacher.train()
    generator_state = torch.get_rng_state()
    fit_blocks(student, teacher, batches(3))

    assert torch.equal(torch.get_rng_state(), generator_state)
    assert not student.training and teacher.training
    assert [p.requires_grad for p in student.parameters()] == flags
    assert all(p.grad is None for p in student.parameters())
    assert all(torch.equal(value, theirs[name]) for name, value in teacher.state_dict().items())
    changed = {name for name, value in student.state_dict().items() if not torch.equal(value, before[name])}
    inside = [m for m in student.modules() if isinstance(m, SasPBlock)]
    trains = {id(p) for m in inside for p in m.parameters() if p.requires_grad}
    statistics = {id(b) for m in inside for b in m.buffers()}
    named = [*student.named_parameters(remove_duplicate=False), *student.named_buffers(remove_duplicate=False)]
    assert changed == {name for name, tensor in named if id(tensor) in trains | statistics}


def test_two_fits_are_equal_to_the_last_bit() -> None:
    (one, teacher), (two, _) = pair(), pair()
    assert fit_blocks(one, teacher, batches(4)) == fit_blocks(two, teacher, batches(4))
    state = two.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in one.state_dict().items())


def test_a_tower_without_sasp_blocks_is_skipped() -> None:
    student, teacher = pair(text={"block": "attention", "sharing": "none"})
    before = {name: value.clone() for name, value in student.text_encoder.state_dict().items()}
    losses = fit_blocks(student, teacher, batches(5), learning_rate=3e-3)
    assert losses[-1] < losses[0]
    assert all(torch.equal(value, before[name]) for name, value in student.text_encoder.state_dict().items())


def test_bf16_stays_close_to_fp32() -> None:
    losses = []
    for precision in ("fp32", "bf16"):
        student, teacher = pair()
        losses.append(fit_blocks(student, teacher, batches(2), precision=precision))  # type: ignore[arg-type]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_models_that_cannot_be_paired_are_refused() -> None:
    student, teacher = pair()
    with pytest.raises(UserError, match="'mobileclip-nano' has no SAS-P blocks"):
        fit_blocks(teacher, teacher, batches(1))
    deeper = create_model("mobileclip-nano", text={"layers": 5})
    with pytest.raises(UserError, match=r"text tower of 'siclip-nano' has 4 blocks of width 96, that of .* 5 blocks"):
        fit_blocks(student, deeper, batches(1))
    student.requires_grad_(False)
    with pytest.raises(UserError, match="every SAS-P block of 'siclip-nano' is frozen"):
        fit_blocks(student, teacher, batches(1))
