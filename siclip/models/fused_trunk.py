"""A faster form of a frozen image trunk: branches, BatchNorms and layer scales folded into the convolutions.

The output equals the trunk's up to rounding, with a third of the passes over memory. On the CPU activation and
residual addition run inside oneDNN's convolution. The trunk itself is not changed.

Shapes: B batch, C last width, h×w the grid of the attention stage.
"""

from __future__ import annotations

import copy
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F

from siclip.models.image_tower import ImageTower
from siclip.models.placing import laid_out
from siclip.models.timm_parts import ConvMlp, MobileOneBlock, RepMixerBlock, reparameterize_model

_State = tuple[tuple[StorageWeakRef, int], ...]
# Weak keys: the cache must not keep a tower alive.
_fused: WeakKeyDictionary[ImageTower, tuple[_State, nn.Sequential]] = WeakKeyDictionary()


@torch.no_grad()
def fused_trunk(tower: ImageTower, images: Tensor) -> Tensor:
    """`ImageTower.trunk` in eval mode: (B, 3, size, size) → (B, C, h, w), without gradient.

    The folded copy is made at the first call and again after a weight or a statistic has changed.
    """
    # Which storage, and its version counter: cheaper than a hash. Every in-place change raises the counter.
    state = tuple(
        (StorageWeakRef(tensor.untyped_storage()), tensor._version)  # type: ignore[no-untyped-call]
        for module in tower.trunk_modules()
        for tensor in chain(module.parameters(), module.buffers())
    )
    cached = _fused.get(tower)
    if cached is None or cached[0] != state:
        cached = (state, _fold(tower))
        _fused[tower] = cached
    features: Tensor = cached[1](images)
    return features


def _fold(tower: ImageTower) -> nn.Sequential:
    modules = copy.deepcopy(nn.Sequential(*tower.trunk_modules())).eval()
    device = next(modules.parameters()).device
    # The new convolutions draw initial weights, which must not advance the training's random state. An absent card,
    # of fake tensors, has none.
    generators = [device] if device.type == "cuda" and torch.cuda.is_available() else []
    # timm names no device for them.
    with torch.random.fork_rng(generators), device:
        reparameterize_model(modules, inplace=True)
    folded = _replaced(modules).requires_grad_(False)
    assert isinstance(folded, nn.Sequential)
    return laid_out(folded, torch.channels_last)


def _replaced(module: nn.Module) -> nn.Module:
    """The module with everything fused that can be."""
    if isinstance(module, RepMixerBlock) and type(module.mlp) is ConvMlp:
        return _Mixing(module)
    if isinstance(module, MobileOneBlock) and isinstance(module.se, nn.Identity) and _is_gelu(module.act):
        return _Convolution(module.reparam_conv, gelu=True)
    for name, child in module.named_children():
        setattr(module, name, _replaced(child))
    return module


class _Mixing(nn.Module):
    """A RepMixer block: depthwise mixer, then x + s·MLP(x), with the MLP's BatchNorm and s folded in."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.mixer = block.token_mixer
        mlp, scale = block.mlp, getattr(block.layer_scale, "gamma", None)
        self.depthwise = _Convolution(_with_batch_norm(mlp.conv.conv, mlp.conv.bn))
        self.expand = _Convolution(mlp.fc1, gelu=_is_gelu(mlp.act))
        self.act = nn.Identity() if self.expand.gelu else mlp.act
        self.contract = _Convolution(mlp.fc2 if scale is None else _scaled(mlp.fc2, scale.flatten()))

    def forward(self, x: Tensor) -> Tensor:
        x = self.mixer(x)
        out: Tensor = self.contract(self.act(self.expand(self.depthwise(x))), x)
        return out


class _Convolution(nn.Module):
    """A convolution followed by a GELU or a residual addition, in one oneDNN call if available."""

    def __init__(self, conv: nn.Conv2d, gelu: bool = False) -> None:
        super().__init__()
        self.conv = conv
        self.gelu = gelu

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        conv = self.conv
        if _has_onednn(x):
            run: Any = torch.ops.mkldnn._convolution_pointwise
            layer = (conv.weight, conv.bias, conv.padding, conv.stride, conv.dilation, conv.groups)
            if residual is not None:
                added: Tensor = run.binary(x, residual, *layer, "add", None, None, [], None)
                return added
            convolved: Tensor = run(x, *layer, "gelu" if self.gelu else "none", [], "none")
            return convolved
        x = conv(x)
        x = F.gelu(x) if self.gelu else x
        return x if residual is None else x + residual


def _has_onednn(x: Tensor) -> bool:
    """Only in fp32 outside autocast: autocast does not cast the inputs of this operator.

    ``torch.backends.mkldnn.flags(enabled=False)`` turns it off.
    """
    if x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return False
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return available and bool(torch.backends.mkldnn.enabled) and hasattr(torch.ops.mkldnn, "_convolution_pointwise")


def _is_gelu(act: nn.Module) -> bool:
    """Whether it is the exact GELU, which the fused call computes, not the tanh approximation."""
    return isinstance(act, nn.GELU) and act.approximate == "none"


def _with_batch_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    folded = _scaled(conv, scale)
    assert folded.bias is not None
    folded.bias.add_(norm.bias - norm.running_mean * scale)
    return folded


def _scaled(conv: nn.Conv2d, scale: Tensor) -> nn.Conv2d:
    """The convolution with a bias and its output channels multiplied by ``scale`` (C,)."""
    scaled = copy.deepcopy(conv)
    scaled.weight.mul_(scale.view(-1, 1, 1, 1))
    bias = torch.zeros_like(scale) if conv.bias is None else conv.bias * scale
    scaled.bias = nn.Parameter(bias)
    return scaled
