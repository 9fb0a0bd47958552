"""A hash of weights: models of one structure with the same hash have the same weights."""

from __future__ import annotations

import hashlib

import torch
from torch import nn


def weights_hash(model: nn.Module) -> str:
    """First 16 hex digits of the SHA-256 of a state dict's names, shapes, types and values, on any device."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(f"|{name} {tuple(value.shape)} {value.dtype}|".encode())
        # Viewed as bytes because numpy has no bf16; contiguous because channels-last weights must hash the same.
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
