"""The text tower ``mct`` of MobileCLIP (arXiv 2311.17049), with the module names of the official state dict.

Token embedding + learned positions, RepMixer, transformer (or SAS-P) blocks, RepMixer, final LayerNorm,
pooling at the highest token id (the end of text), projection. Not causal and no padding mask: pad tokens
influence the output, as they do in the reference.

Shapes: B batch, T context length, C width, D embed_dim.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from siclip.config import TextTowerConfig
from siclip.models.sasp import QueryKey, SasPBlock, share_blocks
from siclip.models.sharing import parse_pattern


class LayerNormFp32(nn.LayerNorm):
    """LayerNorm computed in fp32 whatever the input's type."""

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.float()).to(input.dtype)


class TokenBatchNorm(nn.BatchNorm1d):
    """BatchNorm of the channels of tokens (B, T, C)."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.transpose(1, 2)).transpose(1, 2)


_NORMS: dict[str, type[nn.Module]] = {
    "tower": LayerNormFp32,
    "layer": LayerNormFp32,
    "rms": nn.RMSNorm,
    "batch": TokenBatchNorm,
}


class MultiHeadAttention(nn.Module):
    """Plain self-attention (B, T, C) → (B, T, C) with one joint projection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.query_key_value(x)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return cast(Tensor, self.out_proj(mixed.transpose(1, 2).reshape(x.shape)))

    def query_key_value(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, C) → three of (B, H, T, C/H)."""
        batch, length, width = x.shape
        qkv = self.qkv_proj(x).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        return query, key, value


class TransformerBlock(nn.Module):
    """Pre-LN transformer block; the places in the Sequentials are the official ones."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.pre_norm_mha = nn.Sequential(LayerNormFp32(width), MultiHeadAttention(width, heads))
        self.pre_norm_ffn = nn.Sequential(
            LayerNormFp32(width), nn.Linear(width, hidden), nn.GELU(), nn.Identity(), nn.Linear(hidden, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.pre_norm_mha(x)
        return cast(Tensor, x + self.pre_norm_ffn(x))


def _depthwise(width: int, kernel: int, bias: bool) -> nn.Conv2d:
    return nn.Conv2d(width, width, (1, kernel), padding=(0, kernel // 2), groups=width, bias=bias)


class ConvBranch(nn.Module):
    """Depthwise convolution over the tokens and its BatchNorm."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.conv = _depthwise(width, kernel, bias=False)
        self.bn = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.bn(self.conv(x)))


class MobileOneBranches(nn.Module):
    """The train-form branches of a MobileOne block: an identity BatchNorm and up to one convolution."""

    def __init__(self, width: int, kernel: int, convolutions: int) -> None:
        super().__init__()
        self.rbr_skip = nn.BatchNorm2d(width)
        self.rbr_conv = nn.ModuleList(ConvBranch(width, kernel) for _ in range(convolutions))

    def forward(self, x: Tensor) -> Tensor:
        out = self.rbr_skip(x)
        for branch in self.rbr_conv:
            out = out + branch(x)
        return cast(Tensor, out)

    def fused(self, kernel: int) -> tuple[Tensor, Tensor]:
        """Kernel (C, 1, 1, k) and bias (C,) of the one convolution that equals the branches in eval mode."""
        scale, shift = _batch_norm_affine(self.rbr_skip)
        weight = torch.zeros(len(scale), 1, 1, kernel, device=scale.device)
        weight[:, 0, 0, kernel // 2] = scale
        for branch in self.rbr_conv:
            assert isinstance(branch, ConvBranch)
            branch_scale, branch_shift = _batch_norm_affine(branch.bn)
            weight = weight + branch.conv.weight * branch_scale.view(-1, 1, 1, 1)
            shift = shift + branch_shift
        return weight, shift


def _batch_norm_affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return scale, norm.bias - norm.running_mean * scale


class RepMixer(nn.Module):
    """Token mixer ``x + s·(mixer(x) − norm(x))`` on (B, C, 1, T), fusable to one depthwise convolution."""

    def __init__(self, width: int, kernel: int, layer_scale: float) -> None:
        super().__init__()
        self.kernel = kernel
        self.norm = MobileOneBranches(width, kernel, convolutions=0)
        self.mixer = MobileOneBranches(width, kernel, convolutions=1)
        self.layer_scale = nn.Parameter(torch.full((width, 1, 1), layer_scale))

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "reparam_conv"):
            return cast(Tensor, self.reparam_conv(x))
        return cast(Tensor, x + self.layer_scale * (self.mixer(x) - self.norm(x)))

    @torch.no_grad()
    def reparameterize(self) -> None:
        """Fuse in place into ``reparam_conv``."""
        if hasattr(self, "reparam_conv"):
            return
        mixer_weight, mixer_bias = self.mixer.fused(self.kernel)
        norm_weight, norm_bias = self.norm.fused(self.kernel)
        scale = self.layer_scale.view(-1)
        weight = (mixer_weight - norm_weight) * scale.view(-1, 1, 1, 1)
        weight[:, 0, 0, self.kernel // 2] += 1
        conv = _depthwise(len(scale), self.kernel, bias=True).to(weight.device)
        conv.weight.copy_(weight)
        assert conv.bias is not None
        conv.bias.copy_((mixer_bias - norm_bias) * scale)
        self.reparam_conv = conv
        del self.norm, self.mixer, self.layer_scale


class ConvFfn(nn.Module):
    """Depthwise convolution over the tokens, then two 1×1 convolutions."""

    def __init__(self, width: int, hidden: int, kernel: int) -> None:
        super().__init__()
        self.conv = ConvBranch(width, kernel)
        self.fc1 = nn.Conv2d(width, hidden, 1)
        self.act = nn.GELU()
        self.fc2 = nn.Conv2d(hidden, width, 1)
        for layer in (self.conv.conv, self.fc1, self.fc2):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.fc2(self.act(self.fc1(self.conv(x)))))


class RepMixerBlock(nn.Module):
    """RepMixer and a convolutional FFN on tokens (B, T, C)."""

    def __init__(self, config: TextTowerConfig) -> None:
        super().__init__()
        width, kernel = config.width, config.mixer_kernel
        self.token_mixer = RepMixer(width, kernel, config.layer_scale)
        self.convffn = ConvFfn(width, int(4.0 * width), kernel)
        self.layer_scale = nn.Parameter(torch.full((width, 1, 1), config.layer_scale))

    def forward(self, x: Tensor) -> Tensor:
        x = self.token_mixer(x.transpose(1, 2).unsqueeze(2))
        x = x + self.layer_scale * self.convffn(x)
        return x.squeeze(2).transpose(1, 2)


class Positions(nn.Module):
    """Learned positions (1, 1, T, C), interpolated for another context length as the reference does."""

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


class TextTower(nn.Module):
    """Token ids (B, T) → embeddings (B, D), not normalised."""

    def __init__(self, config: TextTowerConfig, embed_dim: int) -> None:
        super().__init__()
        width = config.width
        self.embedding_layer = nn.Embedding(config.vocab_size, width)
        nn.init.normal_(self.embedding_layer.weight, std=width**-0.5)
        self.positional_embedding = Positions(config.context_length, width)
        self.transformer = nn.ModuleList([RepMixerBlock(config), *_transformer_blocks(config), RepMixerBlock(config)])
        self.final_layer_norm = LayerNormFp32(width)
        self.projection_layer = nn.Parameter(torch.empty(width, embed_dim))
        nn.init.normal_(self.projection_layer, std=width**-0.5)

    @property
    def blocks(self) -> list[nn.Module]:
        """The transformer (or SAS-P) blocks."""
        return list(self.transformer)[1:-1]

    def trunk_modules(self) -> list[nn.Module]:
        """Everything before the transformer blocks."""
        return [self.embedding_layer, self.positional_embedding, self.transformer[0]]

    def trunk(self, tokens: Tensor) -> Tensor:
        """(B, T) ids → (B, T, C)."""
        x = self.embedding_layer(tokens)
        x = x + self.positional_embedding(tokens.shape[1]).to(x.dtype)
        return cast(Tensor, self.transformer[0](x))

    def head(self, features: Tensor, tokens: Tensor) -> Tensor:
        """(B, T, C) and the ids (B, T) → (B, D)."""
        x = features
        for block in self.blocks:
            x = block(x)
        x = self.final_layer_norm(self.transformer[-1](x))
        pooled: Tensor = x[torch.arange(x.shape[0], device=x.device), tokens.argmax(dim=-1)]
        return pooled @ self.projection_layer.to(pooled.dtype)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.trunk(tokens), tokens)


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
