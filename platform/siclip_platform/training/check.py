"""What of a recipe can be checked on this machine before anything is trained."""

from __future__ import annotations

from siclip.config import LARGEST_COUNT
from siclip_platform.datasets.epochs import with_steps
from siclip_platform.recipes.here import datasets_of, is_here, teachers_of
from siclip_platform.recipes.recipe import Recipe
from siclip_platform.training.build import check
from siclip_platform.training.teachers import check_teachers_are_used


def check_what_is_here(recipe: Recipe) -> Recipe:
    """Check a recipe's model, and its data and teachers if they are on this machine.

    Returns:
        the recipe, its epochs as steps if its data is here.

    Raises:
        UserError: see `siclip_platform.training.build.check`.
    """
    check_teachers_are_used(recipe)
    has_data = all(map(is_here, datasets_of(recipe)))
    if has_data:
        recipe = with_steps(recipe)
    loads = all(map(is_here, teachers_of(recipe))) and (has_data or not recipe.data.teacher_embeddings)
    # without teachers the check does not load them, nor the student that would inherit from them
    without: dict[str, object] = {} if loads else {"teacher": None, "distil_from": []}
    if recipe.training.epochs:  # a trainer has steps; how many does not matter to whether it can be built
        without["training.steps"] = LARGEST_COUNT
    check(recipe.updated(without), with_data=has_data)
    return recipe
