"""Names → configs → models. Names and configs do not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from siclip.config import ImageTowerConfig, ModelConfig, TextTowerConfig
from siclip.errors import UserError

if TYPE_CHECKING:
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


def _second(base: ModelConfig) -> ModelConfig:
    """MobileCLIP2's counterpart of a MobileCLIP: a plain text tower of 12 blocks, and a projection with a bias."""
    return base.model_copy(
        update={
            "name": base.name.replace("mobileclip", "mobileclip2"),
            "image": base.image.model_copy(update={"projection_bias": True}),
            "text": base.text.model_copy(update={"mixer_kernel": 0, "layers": 12}),
        }
    )


def _sasp(base: ModelConfig) -> ModelConfig:
    """A base with SAS-P blocks, of which adjacent pairs share queries and keys."""

    def pairs(blocks: int) -> dict[str, str]:
        return {"block": "sasp", "sharing": "qk:" + "-".join(str(block // 2) for block in range(blocks))}

    return base.model_copy(
        update={
            "name": base.name.replace("mobileclip", "siclip"),
            "image": base.image.model_copy(update=pairs(base.image.layers[-1])),
            "text": base.text.model_copy(update=pairs(base.text.layers)),
        }
    )


_BASES = {_sasp(base).name: base for base in (_S0, _NANO, _second(_S0), _second(_NANO))}
_CONFIGS = {config.name: config for base in _BASES.values() for config in (base, _sasp(base))}


def list_models() -> list[str]:
    """Names of the models that `create_model` builds."""
    return sorted(_CONFIGS)


def base_of(name: str) -> str:
    """The name of the model that a siclip model inherits from; any other name is returned unchanged."""
    return _BASES[name].name if name in _BASES else name


def student_of(name: str) -> str:
    """The name of the siclip model that inherits from a base; any other name is returned unchanged."""
    return next((student for student, base in _BASES.items() if base.name == name), name)


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
    from siclip.models.clip import Clip

    return Clip(model_config(name, image_sharing=image_sharing, text_sharing=text_sharing, **config))
