"""Names → configs → models."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError

from siclip.config import ImageTowerConfig, ModelConfig, TextTowerConfig
from siclip.errors import UserError
from siclip.models.clip import Clip

# Narrow towers for 64-px images: the structure of S0 with three image stages, 4×4 = 16 attention tokens.
# Layer scale starts at 1: timm's 1e-5 is meant for long training.
_NANO_IMAGE = ImageTowerConfig(
    image_size=64,
    layers=(1, 1, 2),
    widths=(32, 64, 128),
    squeeze_excite_downsample=(False, False, True),
    layer_scale=1.0,
)
_NANO_TEXT = TextTowerConfig(context_length=20, width=96, heads=3, layers=4, mlp_ratio=2.0, layer_scale=1.0)

_S0 = ModelConfig(name="mobileclip-s0")
_NANO = ModelConfig(name="mobileclip-nano", embed_dim=128, image=_NANO_IMAGE, text=_NANO_TEXT)


def _sasp(base: ModelConfig, name: str) -> ModelConfig:
    return base.model_copy(
        update={
            "name": name,
            "image": base.image.model_copy(update={"block": "sasp", "sharing": "qk:0-0"}),
            "text": base.text.model_copy(update={"block": "sasp", "sharing": "qk:0-0-1-1"}),
        }
    )


_CONFIGS = {config.name: config for config in (_S0, _sasp(_S0, "siclip-s0"), _NANO, _sasp(_NANO, "siclip-nano"))}


def list_models() -> list[str]:
    """Names of the models that `create_model` builds."""
    return sorted(_CONFIGS)


def model_config(
    name: str, *, image_sharing: str | None = None, text_sharing: str | None = None, **config: Any
) -> ModelConfig:
    """The config of a named model, optionally with other sharing patterns or fields.

    Args:
        name: one of `list_models`.
        image_sharing, text_sharing: patterns such as ``qk:0-0``; None keeps the model's default.
        config: fields of `siclip.config.ModelConfig`; ``image`` and ``text`` are mappings of changed fields.

    Raises:
        UserError: unknown name, field or value, or a pattern for a model without SAS-P blocks.
    """
    if name not in _CONFIGS:
        close = get_close_matches(name, _CONFIGS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UserError(f"no model {name!r}: known models are {', '.join(list_models())}{hint}")
    tree = _CONFIGS[name].model_dump()
    for tower, sharing in (("image", image_sharing), ("text", text_sharing)):
        changes = config.pop(tower, {})
        if not isinstance(changes, Mapping):
            raise UserError(f"model {name!r}: {tower} takes a mapping of changed fields, got {changes!r}")
        tree[tower] |= changes
        if sharing is None:
            continue
        if tree[tower]["block"] != "sasp":
            raise UserError(f"model {name!r} has no SAS-P blocks to share: {tower}_sharing requires a siclip model")
        tree[tower]["sharing"] = sharing
    try:
        return ModelConfig.model_validate(tree | config)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise UserError(f"model {name!r}: " + "; ".join(lines)) from None


def create_model(
    name: str, *, image_sharing: str | None = None, text_sharing: str | None = None, **config: Any
) -> Clip:
    """Build a model with fresh weights. Arguments and errors are those of `model_config`."""
    return Clip(model_config(name, image_sharing=image_sharing, text_sharing=text_sharing, **config))
