"""The two towers, SAS-P blocks, sharing patterns, and the registry of models.

Public names are imported on first use, so that the registry and the patterns do not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from siclip.models.clip import Clip, TrunkFeatures, count_parameters
    from siclip.models.registry import create_model, list_models, model_config
    from siclip.models.sasp import shaped_attention
    from siclip.models.sharing import SharingPattern, enumerate_patterns, parse_pattern

__all__ = [
    "Clip",
    "SharingPattern",
    "TrunkFeatures",
    "count_parameters",
    "create_model",
    "enumerate_patterns",
    "list_models",
    "model_config",
    "parse_pattern",
    "shaped_attention",
]

_MODULE_OF_NAME = {
    "Clip": "clip",
    "SharingPattern": "sharing",
    "TrunkFeatures": "clip",
    "count_parameters": "clip",
    "create_model": "registry",
    "enumerate_patterns": "sharing",
    "list_models": "registry",
    "model_config": "registry",
    "parse_pattern": "sharing",
    "shaped_attention": "sasp",
}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF_NAME:
        raise AttributeError(f"module 'siclip.models' has no attribute {name!r}")
    return getattr(import_module(f"siclip.models.{_MODULE_OF_NAME[name]}"), name)
