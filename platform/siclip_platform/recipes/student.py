"""The model that a recipe trains. It imports no torch."""

from __future__ import annotations

from siclip.config import ModelConfig
from siclip.models.registry import model_config
from siclip_platform.recipes.recipe import Recipe


def recipe_model(recipe: Recipe) -> ModelConfig:
    """Return the config of the model that a recipe trains.

    Raises:
        UserError: the name or a pattern is wrong.
    """
    student = recipe.model
    context = {} if student.context_length is None else {"context_length": student.context_length}
    return model_config(
        student.name,
        image_sharing=student.image_sharing,
        text_sharing=student.text_sharing,
        image={"sasp": student.image_sasp.model_dump()},
        text={"sasp": student.text_sasp.model_dump(), **context},
    )
