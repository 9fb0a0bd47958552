"""The text towers of MobileCLIP (``mct``, arXiv 2311.17049) and MobileCLIP2, with the official state dict's names.

Token embedding + learned positions, RepMixer, transformer (or SAS-P) blocks, RepMixer, final LayerNorm, pooling at
the highest token id (the end of text), projection. MobileCLIP2's tower, open_clip's plain transformer, has no
RepMixers. As in the references, attention is not causal and there is no padding mask, so padding tokens influence the
output.

Shapes: B batch, T context length, C width, D embed_dim.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from siclip.config import TextTowerConfig
from siclip.models.rep_mixer import RepMixerBlock
from siclip.models.sasp import QueryKey, SasPBlock, pick_rows, share_blocks
from siclip.models.sharing import parse_pattern


class LayerNormFp32(nn.LayerNorm):
    """LayerNorm computed in fp32 for any input type."""

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.float()).to(input.dtype)


class TokenBatchNorm(nn.BatchNorm1d):
    """BatchNorm over the channels of tokens (B, T, C)."""

    # Read by siclip.training.calibration, which needs to know the channel dimension.
    channels_last = True

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.transpose(1, 2)).transpose(1, 2)


_NORMS: dict[str, type[nn.Module]] = {
    "tower": LayerNormFp32,
    "layer": LayerNormFp32,
    "rms": nn.RMSNorm,
    "batch": TokenBatchNorm,
}


class MultiHeadAttention(nn.Module):
    """Self-attention (B, T, C) → (B, T, C) with one joint projection of queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        query, key, value = self.query_key_value(x)
        if rows is not None:
            query = query.gather(2, rows[:, None, :, None].expand(-1, self.heads, -1, query.shape[-1]))
        mixed = F.scaled_dot_product_attention(query, key, value)
        return cast(Tensor, self.out_proj(mixed.transpose(1, 2).flatten(2)))

    def query_key_value(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, C) → three of (B, H, T, C/H)."""
        batch, length, width = x.shape
        qkv = self.qkv_proj(x).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        return query, key, value


class TransformerBlock(nn.Module):
    """Pre-LN transformer block; the indices in the Sequentials follow the official state dict."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.pre_norm_mha = nn.Sequential(LayerNormFp32(width), MultiHeadAttention(width, heads))
        self.pre_norm_ffn = nn.Sequential(
            LayerNormFp32(width), nn.Linear(width, hidden), nn.GELU(), nn.Identity(), nn.Linear(hidden, width)
        )

    def forward(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """The block's output (B, T, C), or with token indices ``rows`` (B, R) only those positions, (B, R, C)."""
        norm, attention = self.pre_norm_mha
        mixed = attention(norm(x), rows)
        x = (x if rows is None else pick_rows(x, rows)) + mixed
        return cast(Tensor, x + self.pre_norm_ffn(x))


class Positions(nn.Module):
    """Learned positions (1, 1, T, C), interpolated for another context length as in the reference."""

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.pos_embed = nn.Module()
        self.pos_embed.pos_embed = nn.Parameter(torch.empty(1, 1, length, width))
        nn.init.trunc_normal_(self.pos_embed.pos_embed, std=width**-0.5)

    def forward(self, length: int) -> Tensor:
        positions = cast(Tensor, self.pos_embed.pos_embed)
        if length != positions.shape[2]:
            positions = F.interpolate(positions, size=(length, positions.shape[3]), mode="bilinear")
        return positions[0]


class CutPositions(Positions):
    """Learned positions of which a shorter text takes the first, as in open_clip's transformer."""

    def forward(self, length: int) -> Tensor:
        return cast(Tensor, self.pos_embed.pos_embed)[0, :, :length]


class TextTower(nn.Module):
    """Token ids (B, T) → embeddings (B, D), not normalised.

    Attributes:
        skips_padding: compute the padding after the longest text of a batch once, where that is exact. Its length is
            read from the data; False computes every token, so that shapes depend on the input's shapes alone.
    """

    def __init__(self, config: TextTowerConfig, embed_dim: int) -> None:
        super().__init__()
        width = config.width
        self.has_mixers = config.has_mixers
        self.skips_padding = True
        self.embedding_layer = nn.Embedding(config.vocab_size, width)
        nn.init.normal_(self.embedding_layer.weight, std=width**-0.5)
        positions = Positions if config.has_mixers else CutPositions
        self.positional_embedding = positions(config.context_length, width)
        self.transformer = nn.ModuleList(_layers(config))
        self.final_layer_norm = LayerNormFp32(width)
        self.projection_layer = nn.Parameter(torch.empty(width, embed_dim))
        nn.init.normal_(self.projection_layer, std=width**-0.5)

    @property
    def blocks(self) -> list[nn.Module]:
        """The transformer (or SAS-P) blocks."""
        return list(self.transformer)[1:-1] if self.has_mixers else list(self.transformer)

    @property
    def last_mixer(self) -> RepMixerBlock | None:
        """The RepMixer after the blocks."""
        return cast(RepMixerBlock, self.transformer[-1]) if self.has_mixers else None

    def trunk_modules(self) -> list[nn.Module]:
        """Everything before the transformer blocks."""
        return [self.embedding_layer, self.positional_embedding, *self.transformer[: int(self.has_mixers)]]

    def trunk(self, tokens: Tensor) -> Tensor:
        """(B, T) ids → (B, T, C)."""
        x = self.embedding_layer(tokens)
        x = x + self.positional_embedding(tokens.shape[1]).to(x.dtype)
        return cast(Tensor, self.transformer[0](x)) if self.has_mixers else cast(Tensor, x)

    def head(self, features: Tensor, tokens: Tensor) -> Tensor:
        """Trunk features (B, T, C) and token ids (B, T) → (B, D).

        Only the end-of-text token is pooled. Where exact (none of their BatchNorms is in train mode) and cheaper,
        the last two layers run only on the tokens that it depends on.
        """
        x = features
        *blocks, last = self.blocks
        for index, block in enumerate(blocks):
            common = self._common_tokens(x) if index == 0 else 0
            x = block(x, common=common) if common else block(x)
        # The end of text has the highest id of the vocabulary.
        end = tokens.argmax(dim=-1)
        x = self._end_of_text(last, x, end) if self._windowed(x.shape[1]) else self._all_tokens(last, x, end)
        pooled: Tensor = self.final_layer_norm(x)
        return pooled @ self.projection_layer.to(pooled.dtype)

    def _common_tokens(self, features: Tensor) -> int:
        """Number of tokens at the end that are equal in every text: padding after the longest text of the batch.

        0 if the first block cannot use it.
        """
        block = self.blocks[0]
        # The number depends on the data: a compiled or exported graph would fix it.
        if (
            not self.skips_padding
            or features.requires_grad
            or torch.compiler.is_compiling()
            or torch.compiler.is_exporting()
        ):
            return 0
        if len(features) < 2 or not isinstance(block, SasPBlock) or not block.takes_common_tokens():
            return 0
        differs = (features != features[:1]).any(dim=2).any(dim=0)
        return int(differs.flip(0).cumsum(0).eq(0).sum())

    def _all_tokens(self, last: nn.Module, x: Tensor, end: Tensor) -> Tensor:
        x = last(x)
        if self.last_mixer is not None:
            x = self.last_mixer(x)
        return x[torch.arange(x.shape[0], device=x.device), end]

    def _end_of_text(self, last: nn.Module, x: Tensor, end: Tensor) -> Tensor:
        mixer = self.last_mixer
        if mixer is None:
            return cast(Tensor, last(x, end[:, None])).squeeze(1)
        window = end[:, None] + torch.arange(-mixer.reach, mixer.reach + 1, device=x.device)
        inside = (window >= 0) & (window < x.shape[1])
        # Positions outside the sequence are clamped to valid ones, and ``inside`` sets their values to zero.
        return mixer.centre(last(x, window.clamp(0, x.shape[1] - 1)), inside)

    def _windowed(self, length: int) -> bool:
        mixer = self.last_mixer
        reach = mixer.reach if mixer is not None else 0
        # Exports contain the plain computation; a window as long as the text saves nothing.
        if torch.compiler.is_exporting() or length <= 2 * reach + 1:
            return False
        modules = (*(mixer.modules() if mixer is not None else ()), *self.blocks[-1].modules())
        return not any(m.training for m in modules if isinstance(m, nn.modules.batchnorm._BatchNorm))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.trunk(tokens), tokens)


def _layers(config: TextTowerConfig) -> list[nn.Module]:
    if not config.has_mixers:
        return _transformer_blocks(config)
    return [RepMixerBlock(config), *_transformer_blocks(config), RepMixerBlock(config)]


def _transformer_blocks(config: TextTowerConfig) -> list[nn.Module]:
    width, hidden = config.width, int(config.width * config.mlp_ratio)
    if config.block == "attention":
        return [TransformerBlock(width, config.heads, hidden) for _ in range(config.layers)]
    options = config.sasp
    blocks = [
        SasPBlock(
            norm=_NORMS[options.norm](width),
            qk=QueryKey(width, bias=True),
            mlp=nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)),
            heads=config.heads,
            value=options.first_value and index == 0,
            trainable_gains=options.trainable_gains,
        )
        for index in range(config.layers)
    ]
    return list(share_blocks(blocks, parse_pattern(config.sharing, config.layers)))
