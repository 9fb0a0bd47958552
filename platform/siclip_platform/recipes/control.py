"""The control of a distilled recipe: the same recipe without distillation."""

from __future__ import annotations

from collections.abc import Collection

from siclip.config import LossConfig
from siclip_platform.recipes.recipe import Recipe

DISTILLATION = ("feature_distillation", "contrastive_relational", "interactive_contrastive")
"""The loss weights of distillation."""


def without_distillation(recipe: Recipe) -> Recipe:
    """The recipe with the three distillation weights at 0.

    ``distil_from`` is emptied unless another loss uses it.
    """
    off: dict[str, object] = {f"loss.{name}": 0.0 for name in DISTILLATION}
    if recipe.loss.schedule:
        off["loss.schedule"] = _without(DISTILLATION, recipe.loss)
    remaining = recipe.loss.model_copy(update=dict.fromkeys(DISTILLATION, 0.0))
    return recipe.updated(off if remaining.needs_teacher else off | {"distil_from": []})


def _without(terms: Collection[str], loss: LossConfig) -> list[object]:
    """The schedule's stages without these weights; stages that would be empty are omitted."""
    kept = [(stage.step, {k: v for k, v in stage.weights.items() if k not in terms}) for stage in loss.schedule]
    return [{"step": step, "weights": weights} for step, weights in kept if weights]
