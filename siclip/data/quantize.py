"""Vectors in two bytes or one byte per number: bf16, or int8 with a scale per vector.

Shapes: N vectors, D their width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    # processes that only read stored vectors need no torch, which takes seconds to import
    from torch import Tensor

Numbers = Literal["bf16", "int8"]
NUMBER_BYTES: dict[Numbers, int] = {"bf16": 2, "int8": 1}
# Symmetric int8: -128 is not used, so that a vector and its negative have the same error.
LARGEST = 127


def quantize(vectors: Tensor, numbers: Numbers) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32] | None]:
    """(N, D) → little-endian bytes (N, D · bytes per number) and, for int8, the scales (N,).

    bf16 rounds to nearest even: |error| ≤ 2⁻⁸ |value|. int8: scale = max|vector| / 127 and |error| ≤ scale / 2, which
    is at most max|vector| / 254.
    """
    import torch

    vectors = vectors.detach().float().cpu()
    if numbers == "bf16":
        return vectors.to(torch.bfloat16).contiguous().view(torch.uint8).numpy(), None
    scales = vectors.abs().amax(dim=1) / LARGEST
    # A zero vector has scale 0.
    steps = torch.where(scales[:, None] > 0, vectors / scales[:, None], torch.zeros(()))
    whole = steps.round().clamp(-LARGEST, LARGEST).to(torch.int8)
    return whole.contiguous().view(torch.uint8).numpy(), scales.numpy()


def dequantize(data: npt.NDArray[np.uint8], scales: npt.NDArray[np.float32] | None) -> Tensor:
    """The result of `quantize` → (N, D) fp32; ``scales`` is None for bf16."""
    import torch

    whole = np.ascontiguousarray(data) if data.flags.writeable else data.copy()
    if scales is None:
        return torch.from_numpy(whole.view(np.int16)).view(torch.bfloat16).float()
    steps = torch.from_numpy(whole.view(np.int8)).float()
    return steps * torch.from_numpy(np.array(scales, dtype=np.float32))[:, None]
