"""SAS-P: the simplified attention block without skip connection, value and projection (arXiv 2311.01906).

    y = norm(x)
    A_h = α_h·I + β_h·softmax(Q_h K_hᵀ/√d) − γ_h·C      with C = 11ᵀ/T, per head h
    out = β_SA·concat_h(A_h y_h) + β_FF·MLP(y)

Shapes: B batch, T tokens, C channels, H heads, d = C/H.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from siclip.models.sharing import SharingPattern


def shaped_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    alpha: Tensor,
    beta: Tensor,
    gamma: Tensor,
    own: Tensor | None = None,
) -> Tensor:
    """Shaped attention A·value, computed as ``β·SDPA(q, k, v) + α·v − γ·mean_T(v)`` without storing a T×T matrix.

    A_h = α_h·I + β_h·softmax(Q_h K_hᵀ/√d) − γ_h·11ᵀ/T (arXiv 2311.01906).

    Args:
        query, key, value: (B, H, T, d).
        alpha, beta, gamma: (H,), one gain per head.
        own: with queries at R positions only, the values at those positions, (B, H, R, d).

    Returns:
        (B, H, T, d), or (B, H, R, d).

    Raises:
        ValueError: the gains do not have one entry per head.
    """
    if not alpha.shape == beta.shape == gamma.shape == (value.shape[1],):
        shapes = ", ".join(str(tuple(gain.shape)) for gain in (alpha, beta, gamma))
        raise ValueError(f"alpha, beta and gamma need one gain for each of the {value.shape[1]} heads, got {shapes}")
    # Under autocast the values are bf16 and the gains fp32: a mixed product would promote everything to fp32.
    alpha_H11, beta_H11, gamma_H11 = (g.view(-1, 1, 1).to(value.dtype) for g in (alpha, beta, gamma))
    attended: Tensor = F.scaled_dot_product_attention(query, key, value)
    mean = value.mean(dim=2, keepdim=True)
    mixed: Tensor = torch.addcmul(alpha_H11 * (value if own is None else own), beta_H11, attended) - gamma_H11 * mean
    return mixed


def attention_matrix(query: Tensor, key: Tensor) -> Tensor:
    """softmax(Q Kᵀ/√d) for queries and keys (B, H, T, d): (B, H, T, T), in fp32 under any autocast."""
    with torch.autocast(query.device.type, enabled=False):
        scores = query.float() @ key.float().transpose(-2, -1) / math.sqrt(query.shape[-1])
        return scores.softmax(dim=-1)


class QueryKey(nn.Module):
    """Queries and keys: the part of a block that the pattern ``qk`` shares.

    W_Q starts at 0, so attention starts uniform and A as the identity (arXiv 2311.01906).
    """

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
    """One SAS-P block on tokens (B, T, C) or, with ``maps``, on feature maps (B, C, height, width).

    Args:
        norm, mlp: modules in the tower's layout, so that the tower's convolutional FFN can be used.
        qk: queries and keys.
        heads: H.
        maps: whether input and output are feature maps.
        value: add a value matrix and an output projection, both identities at the start.
        trainable_gains: False fixes the gains at their initial values.
    """

    def __init__(
        self,
        norm: nn.Module,
        qk: QueryKey,
        mlp: nn.Module,
        heads: int,
        *,
        maps: bool = False,
        value: bool = False,
        trainable_gains: bool = True,
    ) -> None:
        super().__init__()
        self.norm = norm
        self.qk = qk
        self.mlp = mlp
        self.heads = heads
        self.maps = maps
        self.value = _identity_like(qk.query) if value else None
        self.projection = _identity_like(qk.query) if value else None
        self.alpha, self.beta, self.gamma = (nn.Parameter(torch.ones(heads), trainable_gains) for _ in range(3))
        self.beta_sa = nn.Parameter(torch.ones(()), trainable_gains)
        # Small, so that an untrained block is close to its norm alone.
        self.beta_ff = nn.Parameter(torch.full((), 0.1), trainable_gains)

    def forward(self, x: Tensor, rows: Tensor | None = None, common: int = 0) -> Tensor:
        """The block's output.

        Args:
            x: (B, T, C), or (B, C, height, width) with ``maps``.
            rows: token indices (B, R); compute the output at these positions only.
            common: number of tokens at the end that are equal in every sample. Token-wise operations are computed
                once for them. Exact if the input needs no gradient and the norm is token-wise.

        Returns:
            The shape of ``x``, or (B, R, C) with ``rows``.
        """
        if common:
            return self._forward_common(x, common)
        y = self.norm(x)
        tokens = self._tokens(y)
        here = tokens if rows is None else pick_rows(tokens, rows)
        value = self._heads(self._value(tokens))
        own = value if rows is None else self._heads(self._value(here))
        query, key = self._heads(self.qk.query(here)), self._heads(self.qk.key(tokens))
        gains = (self.alpha, self.beta, self.gamma)
        mixed = shaped_attention(query, key, value.to(query.dtype), *gains, own=own.to(query.dtype))
        mixed = mixed.transpose(1, 2).reshape(here.shape)
        if self.projection is not None:
            mixed = self.projection(mixed)
        if self.maps:
            mixed, here = mixed.transpose(1, 2).reshape(y.shape), y
        out: Tensor = self.beta_sa * mixed + self.beta_ff * self.mlp(here)
        return out

    def _forward_common(self, x: Tensor, common: int) -> Tensor:
        batch, length, _ = x.shape
        own = length - common

        def spread(tokens: Tensor) -> Tensor:
            """(B·own + common, C) → (B, T, C)."""
            front, end = torch.split(tokens, [batch * own, common])
            return torch.cat([front.view(batch, own, tokens.shape[-1]), end.expand(batch, -1, -1)], dim=1)

        # As one long text: the norm sees every distinct token once.
        y = self.norm(torch.cat([x[:, :own].flatten(0, 1), x[0, own:]]).unsqueeze(0)).squeeze(0)
        query, key, value = (self._heads(spread(part)) for part in (self.qk.query(y), self.qk.key(y), y))
        mixed = shaped_attention(query, key, value.to(query.dtype), self.alpha, self.beta, self.gamma)
        out: Tensor = self.beta_sa * mixed.transpose(1, 2).flatten(2) + spread(self.beta_ff * self.mlp(y))
        return out

    def takes_common_tokens(self) -> bool:
        """Whether ``common`` is exact for this block: tokens, no value matrix, no batch statistics."""
        norms = (m for m in self.norm.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
        return not self.maps and self.value is None and not any(norm.training for norm in norms)

    def attention_map(self, x: Tensor) -> Tensor:
        """softmax(Q_h K_hᵀ/√d) for a block input, (B, H, T, T). For diagnostics; `forward` never builds it."""
        tokens = self._tokens(self.norm(x))
        return attention_matrix(self._heads(self.qk.query(tokens)), self._heads(self.qk.key(tokens)))

    def _tokens(self, y: Tensor) -> Tensor:
        return y.flatten(2).transpose(1, 2) if self.maps else y

    def _value(self, tokens: Tensor) -> Tensor:
        return tokens if self.value is None else self.value(tokens)

    def _heads(self, tokens: Tensor) -> Tensor:
        batch, length, width = tokens.shape
        return tokens.view(batch, length, self.heads, width // self.heads).transpose(1, 2)


def pick_rows(tokens: Tensor, rows: Tensor) -> Tensor:
    """Tokens (B, T, C) at indices ``rows`` (B, R): (B, R, C)."""
    return tokens.gather(1, rows.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def _identity_like(layer: nn.Linear) -> nn.Linear:
    same = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    nn.init.eye_(same.weight)
    if same.bias is not None:
        nn.init.zeros_(same.bias)
    return same


def share_blocks(blocks: list[SasPBlock], pattern: SharingPattern) -> list[SasPBlock]:
    """Apply a pattern: blocks with the same number use the same module objects, hence the same storage."""
    if pattern.part is None:
        return blocks
    owners = [blocks[pattern.owner(index)] for index in range(len(blocks))]
    if pattern.part == "block":
        return owners
    for block, owner in zip(blocks, owners, strict=True):
        setattr(block, pattern.part, getattr(owner, pattern.part))
    return blocks
