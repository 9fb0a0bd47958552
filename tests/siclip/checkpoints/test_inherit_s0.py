"""The frozen S0 backbone of siclip-s0 does not change by a bit while everything else trains."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from siclip.config import LossConfig, TrainingConfig
from siclip.data.batch import Batch
from siclip.models import Clip, create_model, model_config
from siclip.training.setup import make_trainer

pytestmark = pytest.mark.slow

PAIRS = 4


def batch(index: int) -> Batch:
    generator = torch.Generator().manual_seed(index)
    images = torch.randint(0, 256, (PAIRS, 256, 256, 3), generator=generator, dtype=torch.uint8)
    tokens = torch.randint(1, 49_000, (PAIRS, 77), generator=generator)
    ids = torch.arange(PAIRS) + index * PAIRS
    return Batch(images, tokens, ids, ids + 10_000)


def teacher() -> Clip:
    torch.manual_seed(1)
    model = create_model("mobileclip-s0")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            module.num_batches_tracked.fill_(77)
    return model


@pytest.mark.parametrize("steps", [6, pytest.param(20, marks=pytest.mark.long)])
def test_a_frozen_s0_backbone_is_bit_identical_and_all_else_has_moved(steps: int) -> None:
    # Without weight decay only a gradient can move a weight.
    training = TrainingConfig(
        steps=steps, batch_size=PAIRS, warmup_steps=2, precision="fp32", threads=2, weight_decay=0.0
    )
    trainer = make_trainer(
        model_config("siclip-s0"), LossConfig(pair_matching=0.5), training, teacher=teacher(), inherit_weights=True
    )
    model = trainer.model
    parameters = dict(model.named_parameters()) | {f"loss.{n}": p for n, p in trainer.objective.named_parameters()}
    trained = {name for name, p in parameters.items() if p.requires_grad}
    statistics = {
        f"{name}.{statistic}": buffer
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not module.weight.requires_grad
        for statistic, buffer in module.named_buffers()
    }
    watched = parameters | statistics
    before = {name: tensor.detach().clone() for name, tensor in watched.items()}
    for step in range(steps):
        trainer.train_step(batch(step))

    moved = {name for name, tensor in watched.items() if not torch.equal(tensor, before[name])}
    assert len(statistics) > 100 and all(name.split(".")[-1] in BUFFERS for name in statistics)
    assert not moved - trained, f"frozen, yet moved: {sorted(moved - trained)}"
    assert not trained - moved, f"trained, yet not moved: {sorted(trained - moved)}"
    backbone = sum(parameters[name].numel() for name in parameters.keys() - trained)
    # The logit scale is outside the blocks and trains.
    assert backbone == parameters_outside_blocks(model) - 1


BUFFERS = {"running_mean", "running_var", "num_batches_tracked"}


def parameters_outside_blocks(model: Clip) -> int:
    blocks = [*model.image_encoder.blocks, *model.text_encoder.blocks]
    inside = {id(p) for block in blocks for p in block.parameters()}
    return sum(p.numel() for p in model.parameters() if id(p) not in inside)
