"""The recipes of the digit scenes, which train in minutes on two CPU cores, at any number of steps."""

from __future__ import annotations

from siclip_platform.recipes.load import load_recipe
from siclip_platform.recipes.recipe import Recipe
from siclip_platform.storage import AnyPath

TEACHER = "digits-teacher"
STUDENT = "digits-student"


def digits_teacher(data: AnyPath, *, steps: int | None = None, seed: int = 0) -> Recipe:
    """The shipped recipe ``digits-teacher``.

    Args:
        data: the dataset.
        steps: their number; None: the recipe's own.
        seed: of the training.
    """
    return _recipe(TEACHER, data, steps, seed)


def digits_student(
    data: AnyPath, teacher: AnyPath | None = None, *, steps: int | None = None, seed: int = 0
) -> Recipe:
    """The shipped recipe ``digits-student``.

    Args:
        data: the dataset.
        teacher: the teacher's checkpoint.
        steps: their number; None: the recipe's own.
        seed: of the training.
    """
    return _recipe(STUDENT, data, steps, seed).updated({"teacher": str(teacher) if teacher else None})


def _recipe(name: str, data: AnyPath, steps: int | None, seed: int) -> Recipe:
    recipe = load_recipe(name).updated({"data.path": str(data), "training.seed": seed})
    return recipe if steps is None else recipe.updated(of_length(steps))


def of_length(steps: int) -> dict[str, object]:
    """The fields of a training with this many steps; warm-up, logs and evaluations keep their shares of it."""
    return {
        "training.steps": steps,
        "training.warmup_steps": max(1, steps // 12),
        "training.log_every": max(1, steps // 24),
        "training.evaluate_every": max(1, steps // 6),
    }
