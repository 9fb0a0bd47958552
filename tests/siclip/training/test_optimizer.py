"""The optimizer's step does not depend on the memory layout of gradients and moments."""

from __future__ import annotations

import torch
from torch import nn

from siclip.config import TrainingConfig
from siclip.training.optimizer import make_optimizer


def stepped(gradient_format: torch.memory_format, moment_format: torch.memory_format) -> torch.Tensor:
    """A channels-last weight after two steps, with gradients and moments in these layouts."""
    generator = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.randn(4, 3, 2, 2, generator=generator).to(memory_format=torch.channels_last))
    config = TrainingConfig(steps=10, warmup_steps=1, learning_rate=0.1, precision="fp32")
    optimizer = make_optimizer([("weight", weight)], config)
    for _ in range(2):
        weight.grad = torch.randn(4, 3, 2, 2, generator=generator).to(memory_format=gradient_format)
        optimizer.step()
        state = optimizer.state[weight]
        for name in ("exp_avg", "exp_avg_sq"):
            state[name] = state[name].contiguous(memory_format=moment_format)
    return weight.detach().contiguous()


def test_layouts_of_gradients_and_moments_do_not_change_the_step() -> None:
    plain, last = torch.contiguous_format, torch.channels_last
    expected = stepped(last, last)
    for gradient, moment in ((plain, last), (last, plain), (plain, plain)):
        torch.testing.assert_close(stepped(gradient, moment), expected, rtol=0, atol=0)
