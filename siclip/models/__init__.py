"""The two towers, SAS-P blocks, sharing patterns, and the registry of models."""

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
