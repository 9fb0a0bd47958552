"""A frozen BatchNorm keeps its statistics as well as its weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


def keep_frozen_norms(module: nn.Module) -> None:
    """Put every BatchNorm whose weight does not train into eval mode; `Clip.train` ends with this."""
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and not part.weight.requires_grad:
            part.eval()


def guard_frozen_norms(module: nn.Module) -> None:
    """Make frozen BatchNorms compute in eval mode even if only a part of the model was put in train mode."""
    # train() on a submodule does not go through Clip.train, so the mode is checked at each use.
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.register_forward_pre_hook(_stay_in_eval)


def _stay_in_eval(norm: nn.Module, inputs: object) -> None:
    if norm.training and not norm.weight.requires_grad:
        norm.eval()


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Eval mode inside the block; afterwards each submodule has its own mode again."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
