"""How a command line becomes the options and the recipes of a study, new or resumed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from pydantic import ValidationError

from siclip.errors import UserError
from siclip_platform.cli.experiments import absolute, named_recipe, read_recipe, set_values

if TYPE_CHECKING:
    from siclip_platform.recipes.recipe import Recipe
    from siclip_platform.studies.options import Options
    from siclip_platform.studies.resume import Difference
    from siclip_platform.studies.starting_point import StartingPoint
    from siclip_platform.studies.study_file import StudyFile, StudyKind


def given_options(context: typer.Context) -> dict[str, Any]:
    """The parameters that the command line gave; defaults are not among them."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {
        name: context.params[name]
        for name, source in sources.items()
        if source is not None and not source.name.startswith("DEFAULT")
    }


def options_of(context: typer.Context, out: Path, **fixed: Any) -> Options:
    """The options of a command line.

    Args:
        context: its parameters that have a field's name become that field; those that are None are not set.
        out: the folder if the command line names none.
        fixed: fields that do not come from the command line.

    Raises:
        UserError: an option has no valid value.
    """
    from siclip_platform.studies.options import Options
    from siclip_platform.studies.resume import flag_of

    fields = {name: context.params[name] for name in Options.model_fields if context.params.get(name) is not None}
    try:
        return Options(**({"out": out} | fields | fixed))
    except ValidationError as error:
        # Without the values: a URI may hold credentials.
        problems = [(str(item["loc"][0]), item["msg"].removeprefix("Value error, ")) for item in error.errors()]
        raise UserError("\n".join(f"{flag_of(field)}: {problem}" for field, problem in problems)) from None


def new_study(context: typer.Context, out: Path, **fixed: Any) -> StartingPoint:
    """A new study around the recipe that the command line names, or around the student of the digit scenes.

    Args:
        context, out, fixed: as for `options_of`.

    Raises:
        UserError: the recipe cannot be read, or a change does not fit.
    """
    from siclip_platform.studies.starting_point import starting_point

    given = context.params
    recipe = named_recipe(*(given[name] for name in ("recipe", "data", "teacher", "changes")))
    steps = {name: given[name] for name in ("steps", "teacher_steps")}
    return starting_point(options_of(context, out, **fixed), recipe, set_values(given["changes"]), **steps)


def resumed_study(context: typer.Context, kind: StudyKind, out: Path) -> StartingPoint:
    """The study that ``--resume`` names, with the options of the command line that may change.

    Raises:
        UserError: see `siclip_platform.studies.resume.resumed` and `siclip_platform.studies.extension.extended`.
    """
    from siclip_platform.studies.extension import extended
    from siclip_platform.studies.resume import resumed
    from siclip_platform.studies.starting_point import StartingPoint

    given = given_options(context)
    study = resumed(kind, options_of(context, out), given, lambda study: _recipe_differences(study, given))
    if kind == "train":
        study = extended(study, _requested(study.base, given))
    return StartingPoint.of(study)


def _recipe_differences(study: StudyFile, given: dict[str, Any]) -> list[Difference]:
    """What the options that describe recipes ask for, and the study's recipes do not have."""
    from siclip_platform.studies.extension import FIELDS, may_be_extended
    from siclip_platform.studies.resume import Difference, recipe_differences

    asked = _requested(study.base, given)
    found = recipe_differences(study.base, asked)
    if study.kind == "train" and may_be_extended(study.base, asked):
        found = [difference for difference in found if difference.option not in FIELDS]
    trained: dict[str, Recipe | None] = {"--steps": study.base, "--teacher-steps": study.teaching}
    for option, recipe in trained.items():
        has, steps = recipe and recipe.training.steps, given.get(option[2:].replace("-", "_"))
        if steps is not None and steps != has:
            found.append(Difference(option, has, steps))
    return found


def _requested(base: Recipe, given: dict[str, Any]) -> Recipe:
    """The recipe that the command line describes, in steps; what it does not name is as in ``base``."""
    from siclip_platform.datasets.epochs import with_steps
    from siclip_platform.recipes.load import is_shipped

    recipe, changes = given.get("recipe"), given.get("changes")
    if not recipe:
        return with_steps(absolute(base.updated(set_values(changes))))
    # A shipped recipe's dataset and teacher are examples. --data and --teacher are compared as options.
    data, teacher = (base.data.path, base.teacher) if is_shipped(recipe) else (None, None)
    return with_steps(read_recipe(recipe, given.get("data") or data, given.get("teacher") or teacher, changes))
