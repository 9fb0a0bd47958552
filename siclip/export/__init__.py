"""Exports of a model. An export is refused unless its outputs equal the model's within 1e-4."""

from siclip.export.check import Exported
from siclip.export.official import export_official
from siclip.export.onnx import export_onnx
from siclip.export.open_clip import export_open_clip, load_open_clip, to_open_clip_model

__all__ = [
    "Exported",
    "export_official",
    "export_onnx",
    "export_open_clip",
    "load_open_clip",
    "to_open_clip_model",
]
