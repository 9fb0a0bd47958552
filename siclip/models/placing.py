"""A module on its device, in the memory layout in which it trains."""

from __future__ import annotations

from itertools import chain
from typing import TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def placed(module: Module, device: torch.device) -> Module:
    """The module with its tensors on the device, those of four dimensions in channels-last layout.

    A module that is there already is not moved, so that this works for fake tensors (`siclip.training.fake`).
    """
    tensors = chain(module.parameters(), module.buffers())
    # "cuda" is whichever card is current.
    if any(t.device.type != device.type or device.index not in (None, t.device.index) for t in tensors):
        module.to(device)
    return laid_out(module, torch.channels_last)


def laid_out(module: Module, layout: torch.memory_format) -> Module:
    """The module with its tensors of four dimensions in this layout; its parameters stay the same objects."""
    # Not by nn.Module.to, which cannot replace fake tensors.
    for tensor in chain(module.parameters(), module.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.to(memory_format=layout)
    return module
