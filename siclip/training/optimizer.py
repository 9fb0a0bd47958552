"""AdamW, the choice of parameters that decay, the learning-rate schedule, and the moving average of the weights."""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import swa_utils

from siclip.config import TrainingConfig
from siclip.models.clip import Clip


class EagerAdamW(torch.optim.AdamW):
    """AdamW without the wrappers that keep it out of what torch compiles.

    On their first call they import torch's compiler, for longer than everything else that a training imports. No
    optimizer is compiled here.
    """

    step: Any = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))
    zero_grad: Any = inspect.unwrap(torch.optim.AdamW.zero_grad)
    add_param_group: Any = inspect.unwrap(torch.optim.AdamW.add_param_group)
    state_dict: Any = inspect.unwrap(torch.optim.AdamW.state_dict)
    load_state_dict: Any = inspect.unwrap(torch.optim.AdamW.load_state_dict)


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter has weight decay: matrices and kernels only, not gains, biases, norms or scales."""
    return sum(size > 1 for size in parameter.shape) >= 2 and not name.endswith("bias")


def make_optimizer(
    named_parameters: Iterable[tuple[str, nn.Parameter]], config: TrainingConfig, later: Collection[str] = ()
) -> torch.optim.AdamW:
    """Fused AdamW over the parameters that train, in two groups: with and without decay.

    Args:
        named_parameters: of model and objective.
        config: learning rate, weight decay and betas.
        later: names of frozen parameters that will train later. AdamW skips a parameter without a gradient: it
            neither moves nor decays, and its moments and bias correction start with its first gradient.
    """
    trained = [(name, p) for name, p in named_parameters if p.requires_grad or name in later]
    groups = [
        {"params": [p for n, p in trained if decays(n, p)], "weight_decay": config.weight_decay},
        {"params": [p for n, p in trained if not decays(n, p)], "weight_decay": 0.0},
    ]
    optimizer = EagerAdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)
    optimizer.register_step_pre_hook(same_layout)
    return optimizer


@torch.no_grad()
def same_layout(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Convert gradients and moments to the memory layout of their parameter, before a step.

    The fused step traverses all of them in memory order. On the CPU it ignores strides; on a GPU it raises an error
    if they differ. Reduced gradients, and moments of a checkpoint from another device, may have another layout.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                parameter.grad = _laid_out_as(parameter, parameter.grad)
            state = optimizer.state.get(parameter, {})
            for name, value in state.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    state[name] = _laid_out_as(parameter, value)


def _laid_out_as(parameter: Tensor, value: Tensor) -> Tensor:
    if value.stride() == parameter.stride():
        return value
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def learning_rate(step: int, config: TrainingConfig) -> float:
    """The learning rate of step 0 ≤ step < steps: a linear warm-up, then ``config.schedule``.

    The cosine and the cool-down reach 0 at ``steps``, which is after the last step.
    """
    peak, warmup = config.learning_rate, config.warmup
    if step < warmup:
        return peak * (step + 1) / warmup
    if config.schedule == "cosine":
        progress = (step - warmup) / (config.steps - warmup)
        return peak * 0.5 * (1 + math.cos(math.pi * progress))
    remaining = config.steps - step
    return peak * remaining / config.cooldown if remaining < config.cooldown else peak


def moving_average(model: Clip, decay: float) -> swa_utils.AveragedModel:
    """An exponential moving average of a model's weights and buffers that starts at their current values."""
    averaging = swa_utils.get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    return swa_utils.AveragedModel(model, multi_avg_fn=averaging, use_buffers=True)
