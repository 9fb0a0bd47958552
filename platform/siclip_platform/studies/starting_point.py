"""Where a study starts: the recipe that a command line names, or the student of the digit scenes and its teacher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from siclip.errors import UserError
from siclip_platform.recipes.presets import STUDENT_STEPS, TEACHER_STEPS, digits_student, digits_teacher
from siclip_platform.recipes.recipe import Recipe
from siclip_platform.storage import as_path
from siclip_platform.studies.options import Options


def starting_point(
    options: Options,
    given: Recipe | None,
    changes: Mapping[str, object],
    *,
    steps: int = STUDENT_STEPS,
    teacher_steps: int = TEACHER_STEPS,
) -> tuple[Options, Recipe, Recipe | None]:
    """The options, the recipe that the study is about, and that of its teacher if one is to be trained.

    ``given``: the recipe that was named. Without one: the student of the digit scenes with ``steps`` and the
    ``changes``, by dotted path. Dataset and teacher of the options come before the recipe's.

    Raises:
        UserError: a change does not fit.
    """
    if given is not None:
        named = options.teacher or (as_path(given.teacher) if given.teacher else None)
        options = replace(options, data=options.data or as_path(given.data.path), teacher=named)
    teacher = options.teacher.resolve() if options.teacher else None
    folder = options.dataset_folder
    base = given or digits_student(folder, steps=steps, seed=options.seed).updated(changes)
    base = base.updated({"data.path": str(folder), "teacher": str(teacher) if teacher else None})
    trained = given is None and teacher is None
    return options, base, digits_teacher(folder, steps=teacher_steps, seed=options.seed) if trained else None


def check_teacher(base: Recipe, teaching: Recipe | None) -> None:
    """Before anything is computed: a recipe that needs a teacher has one, or one will be trained.

    Raises:
        UserError: it has none.
    """
    if teaching is None and not base.teacher and (base.model.inherit or base.loss.needs_teacher):
        raise UserError("the recipe needs a teacher and has none: name one with --teacher")
