"""Presets: the teacher and the student of the digit scenes, which train in minutes on two CPU cores."""

from __future__ import annotations

from collections.abc import Callable, Collection

from siclip.config import LossConfig, TrainingConfig
from siclip.errors import UserError
from siclip_platform.recipes.problems import closest
from siclip_platform.recipes.recipe import DataConfig, EvaluationConfig, Recipe, StudentConfig
from siclip_platform.storage import AnyPath

TEACHER_STEPS = 200
STUDENT_STEPS = 48


def digits_teacher(data: AnyPath, *, steps: int = TEACHER_STEPS, seed: int = 0) -> Recipe:
    """``mobileclip-nano``, trained from scratch with the contrastive loss alone."""
    return Recipe(
        data=DataConfig(path=str(data), window_row_groups=4, concurrent_reads=1),
        model=StudentConfig(name="mobileclip-nano", inherit=False),
        loss=LossConfig(feature_distillation=0, contrastive_relational=0, interactive_contrastive=0),
        training=_training(steps, seed, learning_rate=3.5e-3, threads=2),
        evaluation=EvaluationConfig(validation_samples=300),
    )


def digits_student(
    data: AnyPath, teacher: AnyPath | None = None, *, steps: int = STUDENT_STEPS, seed: int = 0
) -> Recipe:
    """``siclip-nano``, which inherits the teacher's trunk frozen and is distilled with three losses."""
    return Recipe(
        data=DataConfig(path=str(data), window_row_groups=4, concurrent_reads=1),
        model=StudentConfig(name="siclip-nano", image_sharing="qk:0-0", text_sharing="qk:0-0-1-1"),
        teacher=str(teacher) if teacher else None,
        training=_training(steps, seed, learning_rate=4e-3, threads=1),
        evaluation=EvaluationConfig(validation_samples=300),
    )


PRESETS: dict[str, Callable[..., Recipe]] = {
    "digits-teacher": digits_teacher,
    "digits-student": digits_student,
}
DISTILLATION = ("feature_distillation", "contrastive_relational", "interactive_contrastive")
"""The loss weights of distillation."""


def without_distillation(recipe: Recipe) -> Recipe:
    """The control of a distilled recipe: the same recipe with the three distillation weights at 0.

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


def preset(name: str, data: AnyPath, **options: object) -> Recipe:
    """A shipped recipe.

    Args:
        name: see `PRESETS`.
        data: the dataset.
        options: of the preset's function, such as ``teacher`` and ``steps``.

    Raises:
        UserError: there is no preset of this name.
    """
    if name not in PRESETS:
        hint = closest(name, PRESETS) or f"; choose one of {', '.join(PRESETS)}"
        raise UserError(f"no preset {name!r}{hint}")
    return PRESETS[name](data, **options)


def _training(steps: int, seed: int, *, learning_rate: float, threads: int) -> TrainingConfig:
    return TrainingConfig(
        steps=steps,
        batch_size=128,
        learning_rate=learning_rate,
        warmup_steps=max(1, steps // 12),
        precision="fp32",
        seed=seed,
        threads=threads,
        log_every=max(1, steps // 24),
        evaluate_every=max(1, steps // 6),
    )
