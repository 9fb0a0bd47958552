"""Which of the datasets and teachers that a recipe names are on this machine."""

from __future__ import annotations

import shlex
from pathlib import Path

from siclip.models.registry import base_of
from siclip.open_clip_models import OPEN_CLIP
from siclip_platform.recipes.load import shipped_recipes
from siclip_platform.recipes.recipe import Recipe
from siclip_platform.storage import as_path


def not_here(recipe: Recipe) -> list[str]:
    """The datasets and teachers that a recipe lacks on this machine, each with what to do about it.

    What a URI or an open_clip tag names is not looked for.
    """
    missing = [
        f"the dataset {path}: make it with siclip-platform data import, digit scenes with data build"
        for path in datasets_of(recipe)
        if is_here(path) is False
    ]
    missing += [
        f"the teacher {name}: name its checkpoint in the recipe or with --teacher"
        for name in teachers_of(recipe)
        if is_here(name) is False
    ]
    has_other = bool(recipe.distil_from or recipe.data.teacher_embeddings)
    if not recipe.teacher and (recipe.model.inherit or (recipe.loss.needs_teacher and not has_other)):
        missing.append(f"the teacher that the recipe needs: {_trained(recipe)}name one in it or with --teacher")
    return missing


def _trained(recipe: Recipe) -> str:
    """How to train the model that a recipe inherits from, where a shipped recipe does that."""
    base = base_of(recipe.model.name)
    if base not in shipped_recipes():
        return ""
    command = ["siclip-platform", "recipe", "init", base, "teacher.yaml", "--data", recipe.data.path]
    return f"train one ({shlex.join(command)}), or "


def datasets_of(recipe: Recipe) -> list[str]:
    """The datasets that a recipe trains on."""
    return [recipe.data.path, *(part.path for part in recipe.data.mix)]


def teachers_of(recipe: Recipe) -> list[str]:
    """The models that a recipe inherits from and is distilled from."""
    return [name for name in (recipe.teacher, *recipe.distil_from) if name]


def is_here(name: str) -> bool | None:
    """Whether a local file or folder exists; None for what is elsewhere."""
    path = None if name.startswith(OPEN_CLIP) else as_path(name)
    return path.exists() if isinstance(path, Path) else None
