"""BatchNorms without data get the statistics of a whole batch, whether or not it is split."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import siclip
from siclip.data.batch import Batch, to_float_images
from siclip.models import Clip, create_model
from siclip.models.text_tower import TokenBatchNorm
from siclip.training.block_regression import fit_blocks
from siclip.training.calibration import calibrate

SIZE = 12


def batch() -> Batch:
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(1, 400, (SIZE, 20), generator=generator)
    images = torch.randint(0, 256, (SIZE, 64, 64, 3), generator=generator, dtype=torch.uint8)
    return Batch(images, tokens, torch.arange(SIZE), torch.arange(SIZE))


def models(sharing: str = "qk:0-0", ffn: str = "conv") -> tuple[Clip, Clip]:
    """Student and teacher, with BatchNorms in the blocks of both towers and attention that is not uniform."""
    torch.manual_seed(3)
    teacher = create_model("mobileclip-nano").eval()
    image, text = {"sasp": {"ffn": ffn}}, {"sasp": {"norm": "batch"}}
    student = create_model("siclip-nano", image_sharing=sharing, image=image, text=text)
    siclip.inherit(student, teacher)
    for name, parameter in student.named_parameters():
        if name.endswith("query.weight"):
            nn.init.normal_(parameter, std=0.2)
    return student.eval(), teacher


def norms(model: Clip) -> dict[str, nn.Module]:
    return {
        name: norm
        for name, norm in model.named_modules()
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.weight.requires_grad
    }


def seen_by(model: Clip, data: Batch) -> dict[str, Tensor]:
    """The input of each of the `norms` in one eval pass: (n, C)."""
    found: dict[str, Tensor] = {}

    def keep(name: str, last: bool) -> object:
        def hook(norm: nn.Module, inputs: tuple[Tensor]) -> None:
            found[name] = inputs[0].movedim(-1 if last else 1, -1).flatten(0, -2)

        return hook

    hooks = [
        n.register_forward_pre_hook(keep(name, isinstance(n, TokenBatchNorm))) for name, n in norms(model).items()
    ]
    with torch.no_grad():
        model(to_float_images(data.images), data.tokens)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("micro", [0, 5, 4, SIZE])
def test_every_statistic_is_that_of_the_norms_input_afterwards(micro: int) -> None:
    """This requires that each was computed when all earlier statistics were already set."""
    student, _ = models()
    modes = {name: norm.training for name, norm in norms(student).items()}
    calibrate(student, batch(), micro)
    inputs = seen_by(student, batch())
    assert len(inputs) >= 4 + 4
    for name, norm in norms(student).items():
        torch.testing.assert_close(norm.running_mean, inputs[name].mean(0), rtol=1e-5, atol=1e-5, msg=name)
        torch.testing.assert_close(norm.running_var, inputs[name].var(0), rtol=1e-4, atol=1e-6, msg=name)
        assert norm.num_batches_tracked == 1
    assert {name: norm.training for name, norm in norms(student).items()} == modes


def test_a_shared_norm_gets_the_mean_over_its_uses() -> None:
    student, _ = models("block:0-0", "plain")
    block = student.image_encoder.blocks[0]
    assert block is student.image_encoder.blocks[1] and isinstance(block.norm, nn.BatchNorm2d)
    calibrate(student, batch(), 5)
    mean, variance = block.norm.running_mean.clone(), block.norm.running_var.clone()
    with torch.no_grad():
        first = student.image_encoder.trunk(to_float_images(batch().images))
        block.norm.running_mean.copy_(first.mean((0, 2, 3)))
        block.norm.running_var.copy_(first.var((0, 2, 3)))
        second = block(first)
    assert block.norm.num_batches_tracked == 2
    torch.testing.assert_close(mean, (first.mean((0, 2, 3)) + second.mean((0, 2, 3))) / 2, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(variance, (first.var((0, 2, 3)) + second.var((0, 2, 3))) / 2, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(first.mean((0, 2, 3)), second.mean((0, 2, 3)), atol=1e-3)


def test_norms_that_are_frozen_or_have_seen_data_keep_their_statistics() -> None:
    student, _ = models()
    calibrate(student, batch())
    before = {name: value.clone() for name, value in student.state_dict().items()}
    other = batch()
    calibrate(student, Batch(255 - other.images, other.tokens, other.image_ids, other.caption_ids))
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def fitted(micro: int) -> tuple[Clip, list[float]]:
    """Models without BatchNorms in the fitted blocks, where splitting a batch is exact."""
    torch.manual_seed(3)
    teacher = create_model("mobileclip-nano").eval()
    plain = {"sasp": {"norm": "layer", "ffn": "plain"}}
    student = create_model("siclip-nano", image=plain)
    siclip.inherit(student, teacher)
    losses = fit_blocks(student, teacher, [batch()] * 3, micro_batch_size=micro)
    return student, losses


def test_block_regression_of_a_split_batch_equals_that_of_the_whole_batch() -> None:
    whole, losses = fitted(0)
    pieces, others = fitted(5)
    assert others == pytest.approx(losses, rel=1e-5)
    state = whole.state_dict()
    for name, value in pieces.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=0, atol=2e-4, msg=name)


def test_block_regression_never_computes_more_than_a_micro_batch() -> None:
    sizes: set[int] = set()
    torch.manual_seed(3)
    teacher, student = create_model("mobileclip-nano").eval(), create_model("siclip-nano")
    for model in (teacher, student):
        for module in model.modules():
            module.register_forward_hook(lambda m, x, y: sizes.add(len(y)) if isinstance(y, Tensor) else None)
    fit_blocks(student, teacher, [batch()], micro_batch_size=4)
    assert max(sizes) == 4
