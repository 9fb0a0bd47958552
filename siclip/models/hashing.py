"""A name for weights: two models of one hash compute the same."""

from __future__ import annotations

import hashlib

import torch
from torch import nn


def weights_hash(model: nn.Module) -> str:
    """First 16 hex digits of the SHA-256 of a state dict's names, shapes and bytes, wherever it lies in memory."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(f"|{name} {tuple(value.shape)} {value.dtype}|".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
