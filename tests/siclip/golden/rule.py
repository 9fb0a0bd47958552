"""A deterministic rule for a model's weights and inputs, so that two implementations can be compared.

Every entry of the official flat state dict is a function of its key and shape only. The numbers come from numpy's
`RandomState`, whose stream NumPy guarantees not to change, seeded by the CRC-32 of the key:

- ``*.running_var``: uniform in [0.5, 1.5)
- ``*.running_mean``: uniform in [−0.05, 0.05)
- ``*.num_batches_tracked``: 7
- ``*layer_scale*``: uniform in [0.1, 0.3), because with the released 1e-5 the blocks would not affect the output
- ``logit_scale``: uniform in [3, 4)
- other vectors named ``weight`` (the scales of norms): uniform in [0.75, 1.25)
- other vectors (biases): uniform in [−0.05, 0.05)
- everything else: uniform in ±sqrt(3 / fan_in), where fan_in is the product of all sizes except the first
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


def stream(name: str) -> np.random.RandomState:
    return np.random.RandomState(zlib.crc32(name.encode()))


def bounds(key: str, shape: tuple[int, ...]) -> tuple[float, float]:
    if key.endswith("running_var"):
        return 0.5, 1.5
    if key.endswith("running_mean"):
        return -0.05, 0.05
    if "layer_scale" in key:
        return 0.1, 0.3
    if key == "logit_scale":
        return 3.0, 4.0
    if len(shape) == 1:
        return (0.75, 1.25) if key.endswith("weight") else (-0.05, 0.05)
    width = math.sqrt(3 / math.prod(shape[1:]))
    return -width, width


def filled(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a model under its official names, with the rule's values."""
    return {
        key: torch.full_like(value, 7)
        if key.endswith("num_batches_tracked")
        else torch.from_numpy(stream(key).uniform(*bounds(key, tuple(value.shape)), tuple(value.shape))).float()
        for key, value in state.items()
    }


def images() -> Tensor:
    """(2, 3, 256, 256) in [0, 1): waves around a level per channel, and noise, for coarse and fine structure."""
    random = stream("images")
    grid = np.linspace(0, 1, 256)
    frequencies = random.uniform(0.5, 40, (6, 3))
    waves = [np.sin(2 * np.pi * (a * grid[:, None] + b * grid[None, :] + c)) for a, b, c in frequencies]
    levels = np.array([[0.1, 0.5, 0.9], [0.8, 0.3, 0.2]])[:, :, None, None]
    pixels = levels + 0.3 * np.stack(waves).reshape(2, 3, 256, 256) + random.uniform(-0.1, 0.1, (2, 3, 256, 256))
    return torch.from_numpy(np.clip(pixels, 0, 0.999)).float()


def tokens() -> Tensor:
    """(2, 77): start, words, end of text, zeros; a short caption and one that fills the context."""
    random = stream("tokens")
    ids = np.zeros((2, 77), dtype=np.int64)
    for row, words in enumerate((6, 75)):
        ids[row, : words + 2] = [49406, *random.randint(1, 49000, words), 49407]
    return torch.from_numpy(ids)
