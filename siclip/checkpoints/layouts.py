"""Layouts of a state dict: siclip, official MobileCLIP, open_clip and timm. Each is a renaming of ours.

| layout | image tower | text tower |
| --- | --- | --- |
| siclip | ``image_encoder.model.`` + timm's FastViT names | ``text_encoder.…`` |
| official | ``image_encoder.model.`` + Apple's names, the projection transposed | ``text_encoder.…`` |
| open_clip | ``visual.trunk.`` + timm's names, with a zero projection bias | ``text.`` + our names |
| timm | timm's names, with a zero projection bias | none |

Official files are Apple's MobileCLIP checkpoints (arXiv 2311.17049). Reading only changes names; which keys a model
needs is checked when the tensors are copied.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from siclip.errors import UserError
from siclip.models.clip import Clip

Layout = Literal["siclip", "official", "open_clip", "timm"]

IMAGE = "image_encoder."
TEXT = "text_encoder."
_NETWORK = "image_encoder.model."
_PROJECTION = "image_encoder.model.head.fc.weight"
_BIAS = "head.fc.bias"
# Parts of a name: ours (timm's) → official. Squeeze-and-excite layers are renamed in the final convolution only,
# because the reference uses timm's module in the downsamplings.
_OFFICIAL_PARTS = {
    "stem": "patch_embed",
    "conv_kxk": "rbr_conv",
    "conv_scale": "rbr_scale",
    "identity": "rbr_skip",
    "large_conv": "lkb_origin",
    "mlp": "convffn",
    "pos_enc": "pe",
    "final_conv": "conv_exp",
}
_OFFICIAL_SQUEEZE = {"fc1": "reduce", "fc2": "expand"}


def detect_layout(keys: Iterable[str]) -> Layout:
    """The layout of a state dict with these names.

    Raises:
        UserError: none of the four; the message shows some keys.
    """
    keys = list(keys)
    # Official before siclip: its names also start with siclip's prefixes.
    starts: tuple[tuple[Layout, tuple[str, ...]], ...] = (
        ("official", ("image_encoder.model.patch_embed.",)),
        ("siclip", (IMAGE, TEXT)),
        ("open_clip", ("visual.trunk.", "text.")),
        ("timm", ("stem.", "stages.")),
    )
    for layout, prefixes in starts:
        if any(key.startswith(prefixes) for key in keys):
            return layout
    some = ", ".join(keys[:3]) + (", …" if len(keys) > 3 else "") if keys else "nothing"
    raise UserError(
        f"not a CLIP state dict in siclip, official MobileCLIP, open_clip or timm layout: it contains {some}"
    )


def to_siclip(flat: Mapping[str, Tensor], model: Clip) -> dict[str, Tensor]:
    """A state dict in any of the four layouts, renamed to ours. Keys unknown to the layout keep their names.

    Args:
        flat: the state dict.
        model: a model of the same structure.

    Raises:
        UserError: as `detect_layout`, or the image projection has a bias other than zero.
    """
    layout = detect_layout(flat)
    if layout == "official":
        return from_official(flat, model)
    if layout == "open_clip":
        return from_open_clip(flat)
    return from_timm(flat) if layout == "timm" else dict(flat)


def from_official(flat: Mapping[str, Tensor], model: Clip) -> dict[str, Tensor]:
    """A state dict in official layout, for ``model``'s structure, renamed to ours."""
    names = {theirs: ours for ours, theirs in official_names(model).items()}
    state = {names.get(key, key): value for key, value in flat.items()}
    return _transposed_projection(state)


def to_official(model: Clip) -> dict[str, Tensor]:
    """The model's tensors under the official names (893 for S0).

    Raises:
        UserError: the model is reparameterized, or has SAS-P blocks, which the official code does not have.
    """
    _check_train_form(model)
    if "sasp" in (model.config.image.block, model.config.text.block):
        raise UserError(
            f"{model.config.name!r} has SAS-P blocks, which the official MobileCLIP layout does not have: "
            "use the siclip or open_clip layout"
        )
    names = official_names(model)
    return {names[key]: value for key, value in _transposed_projection(model.state_dict()).items()}


def official_names(model: Clip) -> dict[str, str]:
    """Our name → the official name, for every entry of the model's state dict.

    The official image network is one flat sequence: every downsampling, position encoding and group of blocks
    takes the next number.
    """
    prefixes: dict[str, str] = {}
    for number, stage in enumerate(model.image_encoder.model.stages):
        for part in ("downsample", "pos_emb", "blocks"):
            if not isinstance(getattr(stage, part), nn.Identity):
                prefixes[f"stages.{number}.{part}."] = f"network.{len(prefixes)}."
    return {key: _official_name(key, prefixes) for key in model.state_dict()}


def _official_name(key: str, prefixes: Mapping[str, str]) -> str:
    if key == _PROJECTION:
        return _NETWORK + "head.proj"
    if not key.startswith(_NETWORK):
        return key
    name = key.removeprefix(_NETWORK)
    for ours, theirs in prefixes.items():
        if name.startswith(ours):
            name = theirs + name.removeprefix(ours)
    parts = _OFFICIAL_PARTS | (_OFFICIAL_SQUEEZE if name.startswith("final_conv.se.") else {})
    return _NETWORK + ".".join(parts.get(part, part) for part in name.removesuffix(".gamma").split("."))


def _transposed_projection(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.T if key == _PROJECTION and value.ndim == 2 else value for key, value in state.items()}


def from_open_clip(flat: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict in open_clip layout, renamed to ours.

    Raises:
        UserError: the image projection has a bias other than zero, which our models cannot represent.
    """
    return _with_prefixes(flat, {"visual.trunk.": _NETWORK, "text.": TEXT})


def to_open_clip(model: Clip) -> dict[str, Tensor]:
    """The model's tensors under open_clip's names; a shared tensor appears under each of its names.

    Raises:
        UserError: the model is reparameterized.
    """
    _check_train_form(model)
    state = _with_prefixes(model.state_dict(), {_NETWORK: "visual.trunk.", TEXT: "text."})
    return state | {f"visual.trunk.{_BIAS}": _zero_bias(model)}


def _check_train_form(model: Clip) -> None:
    if model.is_reparameterized:
        raise UserError(
            f"this {model.config.name!r} is reparameterized, but other layouts hold the train form: use the model it "
            "was created from"
        )


def from_timm(flat: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict in timm's FastViT layout, renamed to ours: an image tower.

    Raises:
        UserError: as `from_open_clip`.
    """
    return _with_prefixes(flat, {"": _NETWORK})


def to_timm(model: Clip) -> dict[str, Tensor]:
    """The image tower's tensors under timm's names.

    Raises:
        UserError: the image tower has SAS-P blocks, which timm does not have.
    """
    if model.config.image.block == "sasp":
        raise UserError(f"the image tower of {model.config.name!r} has SAS-P blocks: timm has no such model")
    state = {key.removeprefix(_NETWORK): v for key, v in model.state_dict().items() if key.startswith(_NETWORK)}
    return state | {_BIAS: _zero_bias(model)}


def _zero_bias(model: Clip) -> Tensor:
    return torch.zeros_like(model.image_encoder.model.head.fc.weight[:, 0])


def _with_prefixes(flat: Mapping[str, Tensor], prefixes: Mapping[str, str]) -> dict[str, Tensor]:
    """Replace prefixes of names; timm's projection bias, which must be zero, is dropped."""
    state = {}
    for key, value in flat.items():
        if key.endswith(_BIAS):
            if value.count_nonzero():
                raise UserError(f"{key} is not zero: the image projection of our models has no bias")
            continue
        old = next((prefix for prefix in prefixes if key.startswith(prefix)), None)
        state[key if old is None else prefixes[old] + key.removeprefix(old)] = value
    return state
