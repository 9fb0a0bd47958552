"""Measure models on evaluation sets: readers of common layouts, a runner, tables, JSON and MLflow runs."""

from siclip_platform.evaluation.checkpoint import evaluate_checkpoint

__all__ = ["evaluate_checkpoint"]
