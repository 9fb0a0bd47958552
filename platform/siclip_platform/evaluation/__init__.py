"""Measuring models on sets of data: readers of the field's layouts, a runner, and what is shown and recorded."""

from siclip_platform.evaluation.checkpoint import evaluate_checkpoint

__all__ = ["evaluate_checkpoint"]
