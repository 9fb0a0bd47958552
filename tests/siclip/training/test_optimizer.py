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


def test_a_step_is_that_of_adamw_to_the_last_bit() -> None:
    """Also after the state was stored and loaded, and with a parameter whose gradient is missing."""
    config = TrainingConfig(steps=10, warmup_steps=1, learning_rate=0.1, weight_decay=0.3)
    weights = {}
    for name, peer in (("ours", False), ("torch", True)):
        generator = torch.Generator().manual_seed(0)
        drawn = [nn.Parameter(torch.randn(*shape, generator=generator)) for shape in ((5, 3), (4,), (2, 2))]
        named = list(zip(("weight", "bias", "unused"), drawn, strict=True))

        def build(named: list[tuple[str, nn.Parameter]] = named, peer: bool = peer) -> torch.optim.AdamW:
            ours = make_optimizer(named, config)
            if not peer:
                return ours
            return torch.optim.AdamW(ours.param_groups, lr=0.1, betas=config.betas, fused=True)

        optimizer = build()
        for step in range(4):
            for parameter in drawn[:2]:
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()
            optimizer.zero_grad()
            assert all(parameter.grad is None for parameter in drawn)
            if step == 1:
                state = optimizer.state_dict()
                optimizer = build()
                optimizer.load_state_dict(state)
        weights[name] = [parameter.detach() for parameter in drawn]
    for ours, theirs in zip(weights["ours"], weights["torch"], strict=True):
        assert torch.equal(ours, theirs)
