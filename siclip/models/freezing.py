"""What freezing means for a BatchNorm: its statistics stay as they are, too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


def keep_frozen_norms(module: nn.Module) -> None:
    """Put every BatchNorm whose weight does not train into eval mode; model and towers end ``train()`` with it."""
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and not part.weight.requires_grad:
            part.eval()


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Eval for the time of the block; then each part gets its own mode back."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
