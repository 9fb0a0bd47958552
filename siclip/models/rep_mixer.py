"""The convolutional layers of the text tower: RepMixer (FastViT, arXiv 2303.14189) over tokens.

Module names follow the official state dict. Shapes: B batch, T tokens, C width, k kernel.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from siclip.config import TextTowerConfig


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
        """Weight (C, 1, 1, k) and bias (C,) of the single convolution that equals the branches in eval mode."""
        # The identity branch is a kernel that is zero except at its centre.
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
        """Fuse the branches in place into one convolution, ``reparam_conv``."""
        if hasattr(self, "reparam_conv"):
            return
        mixer_weight, mixer_bias = self.mixer.fused(self.kernel)
        norm_weight, norm_bias = self.norm.fused(self.kernel)
        scale = self.layer_scale.view(-1)
        weight = (mixer_weight - norm_weight) * scale.view(-1, 1, 1, 1)
        # The residual connection: 1 at the centre of the kernel.
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

    def centre(self, x: Tensor) -> Tensor:
        """The output at the centre of a window as long as the kernel: (B, C, 1, k) → (B, C, 1, 1)."""
        x = self.conv.bn(F.conv2d(x, self.conv.conv.weight, groups=x.shape[1]))
        return cast(Tensor, self.fc2(self.act(self.fc1(x))))


class RepMixerBlock(nn.Module):
    """RepMixer and a convolutional FFN on tokens (B, T, C)."""

    def __init__(self, config: TextTowerConfig) -> None:
        super().__init__()
        width, kernel = config.width, config.mixer_kernel
        self.token_mixer = RepMixer(width, kernel, config.layer_scale)
        # The reference's RepMixer blocks have a ratio of 4 whatever the mlp_ratio of the transformer blocks.
        self.convffn = ConvFfn(width, int(4.0 * width), kernel)
        self.layer_scale = nn.Parameter(torch.full((width, 1, 1), config.layer_scale))

    def forward(self, x: Tensor) -> Tensor:
        x = self.token_mixer(x.transpose(1, 2).unsqueeze(2))
        x = x + self.layer_scale * self.convffn(x)
        return x.squeeze(2).transpose(1, 2)

    @property
    def reach(self) -> int:
        """Number of tokens on either side that an output depends on, through two successive convolutions."""
        return 2 * (self.token_mixer.kernel // 2)

    def centre(self, x: Tensor, inside: Tensor) -> Tensor:
        """The output at the centre of a window. Exact in eval mode.

        Args:
            x: (B, 2·reach + 1, C).
            inside: (B, 2·reach + 1) bool, False where the window extends beyond the sequence, which is padded with
                zeros before both convolutions.

        Returns:
            (B, C).
        """
        inside = inside.unsqueeze(-1).to(x.dtype)
        x = self.token_mixer((x * inside).transpose(1, 2).unsqueeze(2))
        near = slice(self.reach // 2, self.reach + self.reach // 2 + 1)
        x = (x * inside.transpose(1, 2).unsqueeze(2))[..., near]
        middle = x[..., self.reach // 2].unsqueeze(-1)
        return (middle + self.layer_scale * self.convffn.centre(x)).flatten(1)
