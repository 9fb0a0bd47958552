"""Full precision inside mixed-precision training: a softmax over B logits is not a matter for bf16."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor


def full_precision(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in one floating type: fp32, or fp64 where one of them has it.

    It casts only. Under autocast a matmul casts back, so the caller turns autocast off around its arithmetic.
    """
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)
    return tuple(tensor.to(dtype) for tensor in tensors)
