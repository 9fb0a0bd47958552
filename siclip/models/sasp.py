"""SAS-P: the simplified attention block without skip, value and projection (arXiv 2311.01906).

    y = norm(x)
    A_h = α_h·I + β_h·softmax(Q_h K_hᵀ/√d) − γ_h·C      with C = 11ᵀ/T, per head h
    out = β_SA·concat_h(A_h y_h) + β_FF·MLP(y)

Shapes: B batch, T tokens, C channels, H heads, d = C/H.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from siclip.models.sharing import SharingPattern


def shaped_attention(query: Tensor, key: Tensor, value: Tensor, alpha: Tensor, beta: Tensor, gamma: Tensor) -> Tensor:
    """Shaped attention A·value, fused: ``β·SDPA(q, k, v) + α·v − γ·mean_T(v)``; no T×T matrix is kept.

    Args:
        query, key, value: (B, H, T, d).
        alpha, beta, gamma: (H,), one gain per head.

    Returns:
        (B, H, T, d).
    """
    alpha_H11, beta_H11, gamma_H11 = (g.view(-1, 1, 1).to(value.dtype) for g in (alpha, beta, gamma))
    attended: Tensor = F.scaled_dot_product_attention(query, key, value)
    mean = value.mean(dim=2, keepdim=True)
    mixed: Tensor = torch.addcmul(alpha_H11 * value, beta_H11, attended) - gamma_H11 * mean
    return mixed


class QueryKey(nn.Module):
    """Queries and keys: the part of a block that the pattern ``qk`` shares. W_Q starts at 0, so A starts at I."""

    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        self.query = nn.Linear(width, width, bias=bias)
        self.key = nn.Linear(width, width, bias=bias)
        nn.init.zeros_(self.query.weight)
        nn.init.trunc_normal_(self.key.weight, std=width**-0.5)
        if bias:
            nn.init.zeros_(self.query.bias)
            nn.init.zeros_(self.key.bias)


class SasPBlock(nn.Module):
    """One SAS-P block on tokens (B, T, C) or, if the norm is 2-D, on feature maps (B, C, height, width).

    ``norm`` and ``mlp`` are given by the tower and keep its layout, so that a convolutional FFN can stay.
    """

    def __init__(self, norm: nn.Module, qk: QueryKey, mlp: nn.Module, heads: int) -> None:
        super().__init__()
        self.norm = norm
        self.qk = qk
        self.mlp = mlp
        self.heads = heads
        self.alpha = nn.Parameter(torch.ones(heads))
        self.beta = nn.Parameter(torch.ones(heads))
        self.gamma = nn.Parameter(torch.ones(heads))
        self.beta_sa = nn.Parameter(torch.ones(()))
        self.beta_ff = nn.Parameter(torch.full((), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        tokens = y.flatten(2).transpose(1, 2) if y.dim() == 4 else y
        value = self._heads(tokens)
        query, key = self._heads(self.qk.query(tokens)), self._heads(self.qk.key(tokens))
        mixed = shaped_attention(query, key, value.to(query.dtype), self.alpha, self.beta, self.gamma)
        mixed = mixed.transpose(1, 2).reshape(tokens.shape)
        if y.dim() == 4:
            mixed = mixed.transpose(1, 2).reshape(y.shape)
        out: Tensor = self.beta_sa * mixed + self.beta_ff * self.mlp(y)
        return out

    def _heads(self, tokens: Tensor) -> Tensor:
        batch, length, width = tokens.shape
        return tokens.view(batch, length, self.heads, width // self.heads).transpose(1, 2)


def share_blocks(blocks: list[SasPBlock], pattern: SharingPattern) -> list[SasPBlock]:
    """Apply a pattern: blocks with the same number use the very same modules, hence the same storage."""
    if pattern.part is None:
        return blocks
    owners = [blocks[pattern.owner(index)] for index in range(len(blocks))]
    if pattern.part == "block":
        return owners
    for block, owner in zip(blocks, owners, strict=True):
        setattr(block, pattern.part, getattr(owner, pattern.part))
    return blocks
