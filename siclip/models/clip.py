"""CLIP: two towers and a logit scale (arXiv 2103.00020), each tower split into trunk and head.

Shapes: B batch, T context length, D embed_dim.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from siclip.config import ModelConfig
from siclip.data.batch import TrunkFeatures
from siclip.models.freezing import guard_frozen_norms, keep_frozen_norms
from siclip.models.image_tower import ImageTower
from siclip.models.text_tower import TextTower
from siclip.models.timm_parts import reparameterize_model

__all__ = ["MAX_LOGIT_SCALE", "Clip", "TrunkFeatures", "count_parameters"]

# CLIP's bound (arXiv 2103.00020, section 2.5), against instability.
MAX_LOGIT_SCALE = 100.0


class Clip(nn.Module):
    """An image–text model; `Clip(config)` builds it with fresh weights."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.image_encoder = ImageTower(config.image, config.embed_dim)
        self.text_encoder = TextTower(config.text, config.embed_dim)
        # CLIP's initial temperature of 0.07 (arXiv 2103.00020, section 2.5).
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        guard_frozen_norms(self)

    def encode_image(self, images: Tensor, normalize: bool = False) -> Tensor:
        """Images (B, 3, size, size) in [0, 1] → (B, D), L2-normalised with ``normalize``."""
        embeddings: Tensor = self.image_encoder(images)
        return F.normalize(embeddings, dim=-1) if normalize else embeddings

    def encode_text(self, tokens: Tensor, normalize: bool = False) -> Tensor:
        """Token ids (B, T) → (B, D), L2-normalised with ``normalize``."""
        embeddings: Tensor = self.text_encoder(tokens)
        return F.normalize(embeddings, dim=-1) if normalize else embeddings

    def trunk(self, images: Tensor, tokens: Tensor) -> TrunkFeatures:
        """Run both trunks: everything before the attention blocks."""
        return TrunkFeatures(self.image_encoder.trunk(images), self.text_encoder.trunk(tokens))

    def head(self, features: TrunkFeatures, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Run both heads on trunk features → unit image and text embeddings, each (B, D) in fp32."""
        image = self.image_encoder.head(features.image)
        text = self.text_encoder.head(features.text, tokens)
        # In fp32, because bf16 norms would leave the embeddings visibly off unit length.
        return F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1)

    def forward(self, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Unit image and text embeddings of a batch, each (B, D) in fp32."""
        return self.head(self.trunk(images, tokens), tokens)

    def scale(self) -> Tensor:
        """The exponentiated logit scale, at most 100, with a gradient also at the bound."""
        # A clamp inside the graph would stop the gradient at the bound, and the scale could never fall again.
        excess = (self.logit_scale - math.log(MAX_LOGIT_SCALE)).clamp(min=0).detach()
        return (self.logit_scale - excess).exp()

    def trunk_is_frozen(self) -> bool:
        """Whether no weight before the attention blocks of either tower trains."""
        modules = [*self.image_encoder.trunk_modules(), *self.text_encoder.trunk_modules()]
        return not any(p.requires_grad for module in modules for p in module.parameters())

    def train(self, mode: bool = True) -> Clip:
        """Like `nn.Module.train`, but a frozen BatchNorm stays in eval mode: its statistics are frozen too."""
        super().train(mode)
        keep_frozen_norms(self)
        return self

    @property
    def is_reparameterized(self) -> bool:
        """Whether the branches are fused: a deployable model, which can neither be trained nor saved."""
        return any("reparam" in name for name, _ in self.named_parameters())

    def reparameterize(self) -> Clip:
        """A deployable copy: every train-form branch fused, in eval mode, frozen. This model is not changed.

        A model that is already deployable is copied.
        """
        deployable = copy.deepcopy(self).eval()
        if self.is_reparameterized:
            return deployable
        # Before: fusing computes on the weights without a graph. After: the fused convolutions are new parameters.
        for parameter in deployable.parameters():
            parameter.requires_grad_(False)
        reparameterize_model(deployable, inplace=True)
        for parameter in deployable.parameters():
            parameter.requires_grad_(False)
        return deployable


def count_parameters(module: nn.Module, trainable: bool = False) -> int:
    """Number of parameters of a module, shared ones counted once; with ``trainable`` only those that train."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)
