"""Layouts of a state dict: siclip, official MobileCLIP, open_clip and timm. Each is a renaming of ours.

| layout | image tower | text tower |
| --- | --- | --- |
| siclip | ``image_encoder.model.`` + timm's FastViT names | ``text_encoder.…`` |
| official | ``image_encoder.model.`` + Apple's names, the projection transposed | ``text_encoder.…`` |
| open_clip | ``visual.trunk.`` + timm's names | ``text.`` + our names; a plain transformer's are open_clip's own |
| timm | timm's names | none |

open_clip and timm have a bias in the image projection, zero for a model that has none. Official files have none, zero
for a model that has one. Official files are Apple's MobileCLIP checkpoints (arXiv 2311.17049). Reading only changes
names; which keys a model needs is checked when the tensors are copied.
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
_POSITIONS = "text_encoder.positional_embedding.pos_embed.pos_embed"
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
# Parts of a name in a plain text tower: ours → those of open_clip's TextTransformer.
_TRANSFORMER_PARTS = {
    "text_encoder.": "text.",
    "embedding_layer.": "token_embedding.",
    "positional_embedding.pos_embed.pos_embed": "positional_embedding",
    "transformer.": "transformer.resblocks.",
    "pre_norm_mha.0.": "ln_1.",
    "pre_norm_mha.1.qkv_proj.": "attn.in_proj_",
    "pre_norm_mha.1.": "attn.",
    "pre_norm_ffn.0.": "ln_2.",
    "pre_norm_ffn.1.": "mlp.c_fc.",
    "pre_norm_ffn.4.": "mlp.c_proj.",
    "final_layer_norm.": "ln_final.",
    "projection_layer": "text_projection",
}


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
        UserError: as `detect_layout`, or the image projection has a bias other than zero and the model's has none.
    """
    layout = detect_layout(flat)
    if layout == "official":
        return from_official(flat, model)
    if layout == "open_clip":
        return from_open_clip(flat, model)
    return from_timm(flat, model) if layout == "timm" else dict(flat)


def from_official(flat: Mapping[str, Tensor], model: Clip) -> dict[str, Tensor]:
    """A state dict in official layout, for ``model``'s structure, renamed to ours."""
    names = {theirs: ours for ours, theirs in official_names(model).items()}
    state = {names.get(key, key): value for key, value in flat.items()}
    if model.config.image.projection_bias and _PROJECTION in state:
        state[_NETWORK + _BIAS] = _bias(model).new_zeros(len(_bias(model)))
    return _transposed_projection(state)


def to_official(model: Clip) -> dict[str, Tensor]:
    """The model's tensors under the official names (893 for S0).

    Raises:
        UserError: the model is reparameterized, or has SAS-P blocks or a bias of the image projection other than
            zero, which the official code does not have.
    """
    _check_train_form(model)
    if "sasp" in (model.config.image.block, model.config.text.block):
        raise UserError(
            f"{model.config.name!r} has SAS-P blocks, which the official MobileCLIP layout does not have: "
            "use the siclip or open_clip layout"
        )
    if _bias(model).count_nonzero():
        raise UserError(
            f"the image projection of this {model.config.name!r} has a bias other than zero, which the official "
            "MobileCLIP layout does not have: use the siclip or open_clip layout"
        )
    names = official_names(model)
    state = _transposed_projection(model.state_dict())
    return {names[key]: value for key, value in state.items() if key != _NETWORK + _BIAS}


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


def from_open_clip(flat: Mapping[str, Tensor], model: Clip) -> dict[str, Tensor]:
    """A state dict in open_clip layout, for ``model``'s structure, renamed to ours.

    Raises:
        UserError: the image projection has a bias other than zero, and the model's has none.
    """
    names = {theirs: ours for ours, theirs in _transformer_names(model).items()}
    state = {names.get(key, key): value for key, value in flat.items()}
    if _POSITIONS in names.values() and _POSITIONS in state:
        state[_POSITIONS] = state[_POSITIONS][None, None]
    return _with_prefixes(state, {"visual.trunk.": _NETWORK, "text.": TEXT}, model)


def to_open_clip(model: Clip) -> dict[str, Tensor]:
    """The model's tensors under open_clip's names; a shared tensor appears under each of its names.

    Raises:
        UserError: the model is reparameterized.
    """
    _check_train_form(model)
    names = _transformer_names(model)
    state = {names.get(key, key): value for key, value in model.state_dict().items()}
    if _POSITIONS in names:
        state[names[_POSITIONS]] = state[names[_POSITIONS]][0, 0]
    state = _with_prefixes(state, {_NETWORK: "visual.trunk.", TEXT: "text."}, model)
    return state | {f"visual.trunk.{_BIAS}": _bias(model)}


def _transformer_names(model: Clip) -> dict[str, str]:
    """Our name → open_clip's own, for a text tower that open_clip has: a plain one with attention blocks."""
    if model.config.text.has_mixers or model.config.text.block != "attention":
        return {}
    names = {}
    for key in model.text_encoder.state_dict():
        name = TEXT + key
        for ours, theirs in _TRANSFORMER_PARTS.items():
            name = name.replace(ours, theirs)
        names[TEXT + key] = name
    return names


def _check_train_form(model: Clip) -> None:
    if model.is_reparameterized:
        raise UserError(
            f"this {model.config.name!r} is reparameterized, but other layouts hold the train form: use the model it "
            "was created from"
        )


def from_timm(flat: Mapping[str, Tensor], model: Clip) -> dict[str, Tensor]:
    """A state dict in timm's FastViT layout, for ``model``'s structure, renamed to ours: an image tower.

    Raises:
        UserError: as `from_open_clip`.
    """
    return _with_prefixes(flat, {"": _NETWORK}, model)


def to_timm(model: Clip) -> dict[str, Tensor]:
    """The image tower's tensors under timm's names.

    Raises:
        UserError: the image tower has SAS-P blocks, which timm does not have.
    """
    if model.config.image.block == "sasp":
        raise UserError(f"the image tower of {model.config.name!r} has SAS-P blocks: timm has no such model")
    state = {key.removeprefix(_NETWORK): v for key, v in model.state_dict().items() if key.startswith(_NETWORK)}
    return state | {_BIAS: _bias(model)}


def _bias(model: Clip) -> Tensor:
    """The bias of the image projection, zeros for a model that has none."""
    projection: nn.Linear = model.image_encoder.model.head.fc
    if projection.bias is None:
        return torch.zeros_like(projection.weight[:, 0])
    return projection.bias.detach()


def _with_prefixes(flat: Mapping[str, Tensor], prefixes: Mapping[str, str], model: Clip) -> dict[str, Tensor]:
    """Replace prefixes of names; a projection bias that the model does not have must be zero, and is dropped."""
    state = {}
    for key, value in flat.items():
        if key.endswith(_BIAS) and not model.config.image.projection_bias:
            if value.count_nonzero():
                raise UserError(
                    f"{key} is not zero: the image projection of {model.config.name!r} has no bias; that of "
                    "mobileclip2-s0 has one"
                )
            continue
        old = next((prefix for prefix in prefixes if key.startswith(prefix)), None)
        state[key if old is None else prefixes[old] + key.removeprefix(old)] = value
    return state
