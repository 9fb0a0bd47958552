"""A model's architecture in the terms of open_clip's configs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from siclip.config import ImageTowerConfig, ModelConfig

CONFIG_FILE = "open_clip_config.json"
"""The name that open_clip gives the config beside weights."""


def architecture(config: ModelConfig) -> dict[str, Any]:
    """The ``model_cfg`` of open_clip's config; of an image tower that timm does not have, only the image size."""
    text = config.text
    return {
        "embed_dim": config.embed_dim,
        "vision_cfg": _vision(config.image),
        "text_cfg": {
            "context_length": text.context_length,
            "vocab_size": text.vocab_size,
            "width": text.width,
            "heads": text.heads,
            "layers": text.layers,
            "mlp_ratio": text.mlp_ratio,
            "no_causal_mask": True,
        },
        "custom_text": True,
    }


def open_clip_builds(config: ModelConfig) -> bool:
    """Whether open_clip has both towers: timm's network, and a plain transformer."""
    return _is_timms(config.image) and config.text.block == "attention" and not config.text.has_mixers


def card_beside(weights: Path) -> Path | None:
    """open_clip's config beside a file of weights."""
    card = weights.with_name(CONFIG_FILE)
    return card if card.is_file() else None


def _is_timms(config: ImageTowerConfig) -> bool:
    # A projection without a bias is one with a bias of zero.
    free = ("image_size", "layer_scale", "projection_bias")
    return config == ImageTowerConfig().model_copy(update={name: getattr(config, name) for name in free})


def _vision(config: ImageTowerConfig) -> dict[str, Any]:
    if not _is_timms(config):
        return {"image_size": config.image_size}
    return {
        "timm_model_name": "fastvit_mci0",
        "timm_model_pretrained": False,
        "timm_pool": "avg",
        "timm_proj": None,
        "timm_drop": 0.0,
        "timm_drop_path": 0.0,
        "image_size": config.image_size,
    }
