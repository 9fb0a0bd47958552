"""The image tower: timm's FastViT (mci0), split into a convolutional trunk and a head with the attention blocks.

Shapes: B batch, D embed_dim, C last width, h×w the grid of the attention stage.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from siclip.config import ImageTowerConfig
from siclip.models.placing import laid_out
from siclip.models.sasp import QueryKey, SasPBlock, share_blocks
from siclip.models.sharing import parse_pattern
from siclip.models.timm_parts import ConvMlp, FastVit, LayerNorm2d, Mlp, RepConditionalPosEnc, RmsNorm2d

_NORMS = {"tower": nn.BatchNorm2d, "batch": nn.BatchNorm2d, "layer": LayerNorm2d, "rms": RmsNorm2d}


class ImageTower(nn.Module):
    """Images (B, 3, size, size) in [0, 1] → embeddings (B, D), not normalised.

    The network is ``self.model``, so parameters are named ``image_encoder.model.…`` as in the official checkpoint,
    followed by timm's names.
    """

    def __init__(self, config: ImageTowerConfig, embed_dim: int) -> None:
        super().__init__()
        stages = len(config.layers)
        self.model = FastVit(
            layers=config.layers,
            embed_dims=config.widths,
            mlp_ratios=(config.mlp_ratio,) * stages,
            downsamples=(False,) + (True,) * (stages - 1),
            se_downsamples=config.squeeze_excite_downsample,
            pos_embs=(None,) * (stages - 1) + (partial(RepConditionalPosEnc, spatial_shape=(7, 7)),),
            token_mixers=("repmixer",) * (stages - 1) + ("attention",),
            # MobileCLIP's variants have an activation after the large-kernel convolution; timm's default has none.
            lkc_use_act=True,
            num_classes=embed_dim,
            layer_scale_init_value=config.layer_scale,
        )
        # MobileCLIP projects without a bias; timm's classifier, which MobileCLIP2 uses, has one.
        self.model.head.fc = nn.Linear(self.model.head.fc.in_features, embed_dim, bias=config.projection_bias)
        nn.init.trunc_normal_(self.model.head.fc.weight, std=0.02)
        if config.projection_bias:
            nn.init.zeros_(self.model.head.fc.bias)
        if config.block == "sasp":
            self._use_sasp(config)

    def _use_sasp(self, config: ImageTowerConfig) -> None:
        width, depth = config.widths[-1], config.layers[-1]
        hidden, options = int(width * config.mlp_ratio), config.sasp
        blocks = [
            SasPBlock(
                norm=_NORMS[options.norm](width),
                qk=QueryKey(width, bias=False),
                mlp=ConvMlp(width, hidden) if options.ffn == "conv" else Mlp(width, hidden, use_conv=True),
                heads=config.heads,
                maps=True,
                value=options.first_value and index == 0,
                trainable_gains=options.trainable_gains,
            )
            for index in range(depth)
        ]
        self.model.stages[-1].blocks = nn.Sequential(*share_blocks(blocks, parse_pattern(config.sharing, depth)))

    @property
    def blocks(self) -> nn.Sequential:
        """The attention (or SAS-P) blocks."""
        blocks: nn.Sequential = self.model.stages[-1].blocks
        return blocks

    def trunk_modules(self) -> list[nn.Module]:
        """Everything before the attention blocks."""
        last = self.model.stages[-1]
        return [self.model.stem, *self.model.stages[:-1], last.downsample, last.pos_emb]

    def trunk(self, images: Tensor) -> Tensor:
        """(B, 3, size, size) → (B, C, h, w)."""
        x = self._avoid_crash(images)
        for module in self.trunk_modules():
            x = module(x)
        return x

    def _avoid_crash(self, images: Tensor) -> Tensor:
        """Use the contiguous layout for a stem that trains on the CPU.

        In channels-last layout the weight gradient of the stem's 1×1 convolution (3 channels, stride 2) writes out of
        bounds in oneDNN (torch 2.15).
        """
        stem = self.model.stem[0]
        trains = torch.is_grad_enabled() and any(p.requires_grad for p in stem.parameters())
        if images.device.type == "cpu" and trains:
            laid_out(stem, torch.contiguous_format)
            return images.contiguous()
        return images

    def head(self, features: Tensor) -> Tensor:
        """(B, C, h, w) → (B, D)."""
        x = self.blocks(features)
        x = self.model.final_conv(x)
        embeddings: Tensor = self.model.head(x)
        return embeddings

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.trunk(images))
