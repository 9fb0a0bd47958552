"""SiCLIP (arXiv 2411.14789) in plain PyTorch: models, losses, one training loop, evaluation.

Public names are imported on first use, so that ``siclip.config`` and ``siclip.errors`` do not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from siclip.checkpoints.formats import load_checkpoint, load_model, save_checkpoint
    from siclip.checkpoints.inherit import inherit
    from siclip.data.transforms import preprocess
    from siclip.errors import UserError
    from siclip.export import export_official, export_onnx, export_open_clip
    from siclip.models import create_model, list_models
    from siclip.tokenizer import tokenize

__version__ = "0.1.0"

__all__ = [
    "UserError",
    "create_model",
    "export_official",
    "export_onnx",
    "export_open_clip",
    "inherit",
    "list_models",
    "load_checkpoint",
    "load_model",
    "preprocess",
    "save_checkpoint",
    "tokenize",
]

_MODULE_OF_NAME = {
    "UserError": "siclip.errors",
    "create_model": "siclip.models",
    "export_official": "siclip.export",
    "export_onnx": "siclip.export",
    "export_open_clip": "siclip.export",
    "inherit": "siclip.checkpoints.inherit",
    "list_models": "siclip.models",
    "load_checkpoint": "siclip.checkpoints.formats",
    "load_model": "siclip.checkpoints.formats",
    "preprocess": "siclip.data.transforms",
    "save_checkpoint": "siclip.checkpoints.formats",
    "tokenize": "siclip.tokenizer",
}

# Submodules reachable as attributes without an import statement of their own.
_MODULES = (
    "checkpoints",
    "config",
    "diagnostics",
    "evaluation",
    "export",
    "losses",
    "models",
    "teachers",
    "training",
)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"siclip.{name}")
    if name not in _MODULE_OF_NAME:
        raise AttributeError(f"module 'siclip' has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF_NAME[name]), name)
