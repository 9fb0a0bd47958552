"""open_clip's models, opened so that a config cannot run code.

A config of open_clip can name a tokenizer or a text tower of transformers and, for the tokenizer, every argument of
``from_pretrained``: with ``trust_remote_code`` the Python files beside the tokenizer are run. Here a config that is
not open_clip's own may name architecture fields only, and no code of a hub repository is trusted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from siclip.errors import UserError

CONFIG_FILE = "open_clip_config.json"
LOCAL, HUB = "local-dir:", "hf-hub:"
OPEN_CLIP = "open_clip:"
"""Begins ``open_clip:NAME:TAG``, where a checkpoint or an open_clip model can be named."""
OURS = {"MobileCLIP2-S0": "mobileclip2-s0"}
"""Models that we build too, so that students inherit from their weights: open_clip's name → ours."""
CONFIG_BYTES = 1_000_000
LARGEST_NUMBER = 1e7
"""The largest vocabulary is below this; a larger number would only exhaust the memory."""

_BLOCKS = (
    "act_kwargs, norm_kwargs, block_type, qk_norm, scaled_cosine_attn, scale_heads, scale_attn_inner, scale_attn, "
    "scale_fc, layers, width, mlp_ratio, ls_init_value, output_tokens, pool_type, final_ln_after_pool"
)
_TEXT = "context_length, vocab_size, heads, embed_cls, pad_id, eos_id, no_causal_mask, proj_bias, proj_type"


def _names(*parts: str) -> frozenset[str]:
    return frozenset(", ".join(parts).split(", "))


SECTIONS: Mapping[str, frozenset[str]] = {
    "vision_cfg": _names(
        _BLOCKS,
        "head_width, patch_size, image_size, patch_dropout, attentional_pool, attn_pooler_queries, attn_pooler_heads",
        "no_ln_pre, pos_embed_type, timm_model_name, timm_model_pretrained, timm_pool, timm_proj, timm_proj_bias",
        "timm_drop, timm_drop_path",
    ),
    "text_cfg": _names(_BLOCKS, _TEXT),
    "multimodal_cfg": _names(_BLOCKS, _TEXT, "dim_head, n_queries, attn_pooler_heads"),
}
"""The architecture fields by section, without those for transformers (``hf_*``, ``tokenizer_kwargs``, …)."""
TOP = _names(
    "embed_dim, quick_gelu, custom_text, init_logit_scale, init_logit_bias, nonscalar_logit_scale, pad_id",
    *SECTIONS,
)


class OpenedModel(NamedTuple):
    """A model of open_clip, its tokenizer, and its transform of an evaluation, a PIL image to (3, height, width)."""

    model: Any
    tokenizer: Any
    transform: Callable[[Any], Any]


def open_model(name: str, pretrained: str) -> OpenedModel:
    """Build a model of open_clip with weights.

    Args:
        name: a name in open_clip's registry, ``local-dir:FOLDER`` or ``hf-hub:OWNER/NAME``.
        pretrained: a tag or the path of a checkpoint; names with a schema have their own weights.

    Raises:
        UserError: the config names something else than an architecture, or a local folder has the name of the
            transformers model that open_clip's own config names.
        Exception: whatever open_clip, the download and the parser of the weights raise.
    """
    import open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2

    _check_named(name)
    model: Any = open_clip.create_model(name, pretrained=pretrained, require_pretrained=True, weights_only=True)
    # Only the tokenizers of transformers take the argument.
    config = open_clip.get_model_config(name) or {}
    uses_transformers = bool(config.get("text_cfg", {}).get("hf_tokenizer_name"))
    untrusted: dict[str, Any] = {"trust_remote_code": False} if uses_transformers else {}
    tokenizer = open_clip.get_tokenizer(name, **untrusted)
    transform = image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)
    return OpenedModel(model, tokenizer, transform)


def register(path: Path) -> str:
    """Add a model config to open_clip's registry and return the model's name, which is the file's without ``.json``.

    Raises:
        UserError: the file cannot be read, is not a config, names something else than an architecture, or open_clip
            has another model of this name.
    """
    import open_clip

    config = read_config(path)
    check_config(config, str(path))
    # A colon would make a schema of the name: open_clip would read another config than this one.
    if not re.fullmatch(r"[\w.+-]+", path.stem):
        raise UserError(f"{path}: the file's name becomes the model's; use letters, digits, '_', '-', '+' and '.'")
    # open_clip's registry is global: a second registration of the same file must pass.
    if path.stem in open_clip.list_models() and open_clip.get_model_config(path.stem) != config:
        raise UserError(f"open_clip already has a model {path.stem!r}: rename the file {path.name}")
    open_clip.add_model_config(path)
    # open_clip read the file again.
    if open_clip.get_model_config(path.stem) != config:
        raise UserError(f"{path} changed while it was read: repeat the command when nothing writes to it")
    return path.stem


def read_config(path: Path) -> Any:
    """The JSON of a config file.

    Raises:
        UserError: there is no such file, it is too large, or it is not JSON.
    """
    if not path.is_file():
        raise UserError(f"model config {path} does not exist: name a file in open_clip's format, or a model")
    try:
        if path.stat().st_size > CONFIG_BYTES:
            raise UserError(f"model config {path} is larger than {CONFIG_BYTES:,} bytes: it is no model config")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"model config {path} cannot be read ({error.strerror}): name another file") from None
    except RecursionError:
        raise UserError(f"model config {path} is nested too deeply: it is no model config") from None
    # Not JSON, not UTF-8, or a number with more digits than Python converts.
    except ValueError as error:
        raise UserError(f"model config {path} is not JSON that can be read: {str(error)[:200]}; correct it") from None


def check_config(config: Any, where: str) -> None:
    """Refuse a config that names something else than an architecture.

    Args:
        config: in open_clip's format.
        where: names it in the message.

    Raises:
        UserError: with the field.
    """
    lacks = [name for name in ("embed_dim", "vision_cfg", "text_cfg") if name not in _mapping(config, where)]
    if lacks:
        raise UserError(
            f"{where} is not a model config: it lacks {', '.join(lacks)}; open_clip's have embed_dim, vision_cfg, "
            "text_cfg and, for a CoCa, multimodal_cfg"
        )
    _check_fields(config, TOP, where)
    for section, names in SECTIONS.items():
        if section in config:
            _check_fields(_mapping(config[section], f"{where}: {section}"), names, f"{where}: {section}")
    timm_name = config["vision_cfg"].get("timm_model_name")
    if timm_name is not None:
        _check_timm(timm_name, where)


def _check_named(name: str) -> None:
    """Check what a name of `open_model` refers to."""
    import open_clip

    if name.startswith(LOCAL):
        file = Path(name.removeprefix(LOCAL)) / CONFIG_FILE
        # Without the file open_clip's own error says what the folder lacks.
        if file.exists():
            config = _mapping(read_config(file), str(file))
            check_config(config.get("model_cfg"), f"{file}: model_cfg")
    elif name.startswith(HUB):
        check_config(open_clip.get_model_config(name), name)
    else:
        text = (open_clip.get_model_config(name.replace("/", "-")) or {}).get("text_cfg", {})
        for hub_name in {text.get("hf_model_name"), text.get("hf_tokenizer_name")} - {None, ""}:
            # transformers prefers a folder, and would read its config and code instead of the hub's.
            if Path(hub_name).exists():
                raise UserError(
                    f"{name} uses the model {hub_name!r} of the Hugging Face hub, but {Path(hub_name).absolute()} "
                    "exists and would be read instead: rename it, or use another working folder"
                )


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where} is not a mapping: write a model config in open_clip's format")
    return value


def _check_fields(section: Mapping[str, Any], names: frozenset[str], where: str) -> None:
    for name, value in section.items():
        if name not in names:
            raise UserError(
                f"{where}: {name!r} is no architecture field and is refused, because open_clip could load code or "
                "files that it names: remove it"
            )
        if name in ("act_kwargs", "norm_kwargs"):
            _check_value(list(_mapping(value or {}, f"{where}: {name}").values()), f"{where}: {name}")
        elif name not in SECTIONS:
            _check_value(value, f"{where}: {name}")


def _check_value(value: Any, where: str) -> None:
    """Numbers, words, truth values, and short lists of them."""
    if isinstance(value, list) and len(value) <= 100 and not any(isinstance(item, list | dict) for item in value):
        for item in value:
            _check_value(item, where)
    elif isinstance(value, list | dict):
        raise UserError(f"{where} is a mapping, a nested list or a long list: write one value")
    elif isinstance(value, int | float) and not abs(value) <= LARGEST_NUMBER:  # NaN too
        raise UserError(f"{where} is not between -{LARGEST_NUMBER:,.0f} and {LARGEST_NUMBER:,.0f}: correct it")


def _check_timm(name: Any, where: str) -> None:
    import timm

    # timm reads other names as folders (local-dir:) or hub repositories (hf-hub:).
    if not isinstance(name, str) or ":" in name or not timm.is_model(name):
        raise UserError(f"{where}: vision_cfg: timm_model_name {name!r} is no model of timm: see timm.list_models()")
