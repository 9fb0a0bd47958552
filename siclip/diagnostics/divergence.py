"""The similarity of a model's attention maps: Jensen-Shannon divergence (Lin 1991, IEEE TIT 37(1), eq. 4.1).

Used on a teacher to propose which blocks of a student may share weights, and during training to monitor whether
sharing pairs stay close. A low divergence alone proves nothing, because all near-uniform maps are similar. It is
therefore reported with the divergence of non-adjacent pairs and the entropy of the maps.

Shapes: B batch, H heads, T tokens, n attention blocks of a tower.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from siclip.data.batch import TrunkFeatures
from siclip.errors import UserError
from siclip.models.clip import Clip
from siclip.models.freezing import eval_mode
from siclip.models.sasp import SasPBlock, attention_matrix
from siclip.models.text_tower import MultiHeadAttention, TransformerBlock
from siclip.models.timm_parts import AttentionBlock


@dataclass(frozen=True)
class AttentionDivergence:
    """Pairwise comparison of the attention of a tower's n blocks: means over samples, heads and query rows.

    Attributes:
        pairs: (n, n), symmetric with a zero diagonal: Jensen-Shannon divergence of two blocks' maps in nats, 0 to
            ln 2.
        entropy_share: (n,), the entropy of each block's maps divided by ln T; 1 is uniform attention.
        samples: number of samples measured.
    """

    pairs: tuple[tuple[float, ...], ...]
    entropy_share: tuple[float, ...]
    samples: int

    @property
    def adjacent(self) -> tuple[float, ...]:
        """The divergence of blocks 0 and 1, 1 and 2, …: n − 1 values."""
        return tuple(self.pairs[i][i + 1] for i in range(len(self.pairs) - 1))

    @property
    def adjacent_mean(self) -> float | None:
        """The mean of `adjacent`; None for a single block."""
        return _mean(self.adjacent)

    @property
    def non_adjacent_mean(self) -> float | None:
        """The mean over non-adjacent pairs, the baseline for adjacent ones; None below three blocks."""
        return _mean([value for i, row in enumerate(self.pairs) for value in row[i + 2 :]])


def jensen_shannon_divergence(p: Tensor, q: Tensor) -> Tensor:
    """½·KL(p ‖ m) + ½·KL(q ‖ m) in nats with m = ½(p + q).

    Args:
        p, q: distributions over the last dimension, (…, T), broadcastable. Zeros are allowed.

    Returns:
        (…), fp32, in [0, ln 2]: 0 if p equals q, ln 2 if they do not overlap.
    """
    # For rows that hardly differ, an fp32 result would be rounding error only.
    p, q = p.double(), q.double()
    # The bound is for entries where both are 0, which must contribute 0·ln 0 = 0 and not 0/0.
    middle = (0.5 * (p + q)).clamp_min(torch.finfo(torch.float64).tiny)
    terms: Tensor = torch.xlogy(p, p / middle) + torch.xlogy(q, q / middle)
    return (0.5 * terms.sum(dim=-1)).clamp(0.0, math.log(2)).float()


def attention_map(block: nn.Module, x: Tensor) -> Tensor:
    """softmax(Q_h K_hᵀ/√d) of an attention or SAS-P block for its input ``x``: (B, H, T, T), in fp32.

    Raises:
        TypeError: a block of another type.
    """
    if isinstance(block, SasPBlock):
        return block.attention_map(x)
    if isinstance(block, TransformerBlock):
        norm, attention = block.pre_norm_mha
        assert isinstance(attention, MultiHeadAttention)
        query, key, _ = attention.query_key_value(norm(x))
        return attention_matrix(query, key)
    if isinstance(block, AttentionBlock):
        mixer = block.token_mixer
        tokens = block.norm(x).flatten(2).transpose(1, 2)
        qkv = mixer.qkv(tokens).unflatten(-1, (3, mixer.num_heads, mixer.head_dim))
        query, key, _ = qkv.permute(2, 0, 3, 1, 4)
        return attention_matrix(query, key)
    raise TypeError(
        f"no attention map for a {type(block).__name__}: expected a SasPBlock, a TransformerBlock or timm's "
        "AttentionBlock"
    )


@torch.no_grad()
def attention_divergence(model: Clip, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, AttentionDivergence]:
    """Compare the attention blocks of each tower, ``image`` and ``text``.

    The model runs in eval mode without autocast; its mode is restored. The maps of one batch and one tower are in
    memory at a time, n·B·H·T² floats.

    Args:
        model: the model.
        batches: images (B, 3, size, size) in [0, 1] and token ids (B, T), on any device; at least one batch.

    Raises:
        UserError: there are no samples.
    """
    sums: dict[str, Tensor] = {}
    samples, device = 0, model.logit_scale.device
    with eval_mode(model), torch.autocast(device.type, enabled=False):
        for images, tokens in batches:
            samples += len(images)
            features = model.trunk(images.to(device), tokens.to(device))
            for tower, batch_sums in _tower_sums(model, features).items():
                sums[tower] = sums.get(tower, 0) + batch_sums
    if samples == 0:
        raise UserError("attention_divergence got no samples: pass at least one batch of (images, tokens)")
    return {tower: _divergence(total / samples, samples) for tower, total in sums.items()}


@torch.no_grad()
def features_divergence(model: Clip, features: TrunkFeatures) -> dict[str, AttentionDivergence]:
    """`attention_divergence` of one batch from its trunk outputs, which are available during training."""
    samples = len(features.image)
    with eval_mode(model), torch.autocast(features.image.device.type, enabled=False):
        sums = _tower_sums(model, TrunkFeatures(features.image.float(), features.text.float()))
    return {tower: _divergence(total / samples, samples) for tower, total in sums.items()}


def _tower_sums(model: Clip, features: TrunkFeatures) -> dict[str, Tensor]:
    towers = (("image", model.image_encoder.blocks), ("text", model.text_encoder.blocks))
    return {tower: _batch_sums(_maps(blocks, getattr(features, tower))) for tower, blocks in towers}


def _maps(blocks: Iterable[nn.Module], x: Tensor) -> list[Tensor]:
    """Every block's map. Computed without hooks, so that one module may occur several times in a tower."""
    maps: list[Tensor] = []
    before: nn.Module | None = None
    for block in blocks:
        x = x if before is None else before(x)
        maps.append(attention_map(block, x))
        before = block
    return maps


def _batch_sums(maps: list[Tensor]) -> Tensor:
    """(n + 1, n) in fp64, summed over the batch: the divergence of each pair, then the row of entropy shares."""
    n, tokens = len(maps), maps[0].shape[-1]
    sums = torch.zeros(n + 1, n, dtype=torch.float64, device=maps[0].device)
    for i in range(n):
        for j in range(i + 1, n):
            sums[i, j] = sums[j, i] = _sum_of_means(jensen_shannon_divergence(maps[i], maps[j]))
        entropy = torch.special.entr(maps[i]).sum(dim=-1)
        # One token has one distribution, the uniform one.
        share = entropy / math.log(tokens) if tokens > 1 else torch.ones_like(entropy)
        sums[n, i] = _sum_of_means(share)
    return sums


def _sum_of_means(values_BHT: Tensor) -> Tensor:
    return values_BHT.double().mean(dim=(1, 2)).sum()


def _divergence(means: Tensor, samples: int) -> AttentionDivergence:
    *pairs, shares = (tuple(row) for row in means.tolist())
    return AttentionDivergence(pairs=tuple(pairs), entropy_share=shares, samples=samples)


def _mean(values: tuple[float, ...] | list[float]) -> float | None:
    return sum(values) / len(values) if values else None
