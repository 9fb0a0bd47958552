"""Full precision inside mixed-precision training: bf16 is too coarse for a softmax over B logits."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor


def full_precision(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors cast to one floating type: fp32, or fp64 if one of them is fp64.

    The caller must also disable autocast around its arithmetic, because a matmul under autocast casts back.
    """
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)
    return tuple(tensor.to(dtype) for tensor in tensors)
