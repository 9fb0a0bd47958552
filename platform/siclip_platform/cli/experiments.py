"""``siclip-platform demo`` and ``train``, the options that commands share, and how they read a recipe."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from siclip.errors import UserError

if TYPE_CHECKING:
    from siclip_platform.recipes.recipe import Recipe

NAME_OR_FILE = "NAME-OR-FILE"
RecipeOption = Annotated[
    str | None,
    typer.Option("--recipe", metavar=NAME_OR_FILE, help="A shipped recipe (see recipe list) or a file of YAML."),
]
DataOption = Annotated[str | None, typer.Option(help="The dataset, a folder or a URI; overrides the recipe's.")]
TeacherOption = Annotated[
    str | None,
    typer.Option(help="The teacher's checkpoint (file or URI), or open_clip:NAME:TAG; overrides the recipe's."),
]
BaseRecipeOption = Annotated[
    str | None,
    typer.Option("--recipe", metavar=NAME_OR_FILE, help="A shipped recipe or a file; default: digits-student."),
]
BaseDataOption = Annotated[
    str | None, typer.Option(help="The dataset, a folder or a URI; default: digit scenes, built if missing.")
]
BaseTeacherOption = Annotated[
    str | None,
    typer.Option(help="The teacher's checkpoint (file or URI), or open_clip:NAME:TAG; default: one is trained."),
]
CheckpointsOption = Annotated[
    str | None, typer.Option(help="URI or folder for Ray Train's checkpoints; default: in --out.")
]
ArtifactsOption = Annotated[str | None, typer.Option(help="URI where MLflow stores files; default: in --out.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="PATH=VALUE, for any recipe field.")]
OutOption = Annotated[Path, typer.Option(help="Folder for everything that is written.")]
JobOutOption = Annotated[Path | None, typer.Option(help="Folder for everything that is written; default: in runs/.")]
TrackingOption = Annotated[str | None, typer.Option(help="MLflow store; default: sqlite in --out.")]
AddressOption = Annotated[
    str | None, typer.Option(help="The Ray cluster to join; default: RAY_ADDRESS, else a new one here.")
]
StepsOption = Annotated[
    int | None, typer.Option(min=12, help="Steps of digits-student; default, and other recipes: their own.")
]
TeacherStepsOption = Annotated[
    int | None, typer.Option(min=12, help="Steps of a teacher that is trained; default: its own.")
]
ConcurrentOption = Annotated[int | None, typer.Option(min=1, help="Trainings at the same time; default: what fits.")]
ResumeOption = Annotated[
    str | None, typer.Option(metavar="STUDY", help="Resume this study of --out, with the options that it began with.")
]
RegisterOption = Annotated[
    str | None, typer.Option("--register", help="Name of the best model in MLflow's registry.")
]
VerboseOption = Annotated[bool, typer.Option(help="Show Ray's messages.")]


def demo(context: typer.Context) -> None:
    """Run jobs/tune_wikd.py, by default on digit scenes; takes the job's options (--help)."""
    run_job("tune_wikd.py", context)


def train(context: typer.Context) -> None:
    """Run jobs/train_siclip.py: train, track and measure one recipe; takes the job's options (--help)."""
    run_job("train_siclip.py", context)


def run_job(name: str, context: typer.Context) -> None:
    """Run a script of ``jobs/`` in this process, with the command's arguments."""
    job = _find_job(name)
    sys.argv = [str(job), *context.args]
    runpy.run_path(str(job), run_name="__main__")


def read_recipe(name: str | None, data: str | None, teacher: str | None, changes: list[str] | None) -> Recipe:
    """The recipe that a command line names, with its overrides. Paths are absolute.

    Args:
        name: of ``--recipe``, which is required: a shipped recipe or a file.
        data: overrides the recipe's dataset.
        teacher: overrides the recipe's teacher.
        changes: of ``--set``, each PATH=VALUE.

    Raises:
        UserError: no recipe is named, a wrong PATH=VALUE, or an invalid recipe.
    """
    from siclip_platform.recipes.load import load_recipe
    from siclip_platform.storage import absolute_model, absolute_path

    if name is None:
        raise UserError("name a recipe with --recipe NAME-OR-FILE; siclip-platform recipe list shows those that ship")
    recipe = load_recipe(name)
    values: dict[str, object] = {}
    if data is not None:
        values["data.path"] = absolute_path(data)
    if teacher is not None:
        values["teacher"] = absolute_model(teacher)
    return absolute(recipe.updated(values | set_values(changes)))


def named_recipe(name: str | None, data: str | None, teacher: str | None, changes: list[str] | None) -> Recipe | None:
    """As `read_recipe`; None if no recipe is named."""
    return read_recipe(name, data, teacher, changes) if name else None


def recipe_beside(
    name: str | None, data: str | None, teacher: str | None, changes: list[str] | None
) -> Recipe | None:
    """As `named_recipe`, for a command that only reads parts of a recipe: ``--set`` requires one.

    Raises:
        UserError: see `read_recipe`.
    """
    if changes and not name:
        raise UserError("--set changes a recipe: name one with --recipe")
    return named_recipe(name, data, teacher, changes)


def set_values(changes: list[str] | None) -> dict[str, object]:
    """The fields that ``--set`` changes, by dotted path.

    Raises:
        UserError: not PATH=VALUE, or the value is a list, mapping or quoted text that YAML cannot read.
    """
    from siclip_platform.recipes.yaml_file import parse_value

    values: dict[str, object] = {}
    for change in changes or []:
        path, equals, value = change.partition("=")
        if not equals:
            raise UserError(f"--set {change!r}: write PATH=VALUE, for example training.learning_rate=1e-3")
        values[path] = parse_value(value, f"--set {path}")
    return values


def absolute(recipe: Recipe) -> Recipe:
    """The recipe with absolute paths: workers run in other working folders."""
    from siclip_platform.storage import absolute_model, absolute_path

    values: dict[str, object] = {"data.path": absolute_path(recipe.data.path)}
    if recipe.teacher:
        values["teacher"] = absolute_model(recipe.teacher)
    sources = recipe.distil_from
    if sources:
        values["distil_from"] = [absolute_model(source) for source in sources]
    if recipe.data.mix:
        values["data.mix"] = [part.model_dump() | {"path": absolute_path(part.path)} for part in recipe.data.mix]
    return recipe.updated(values)


def _find_job(name: str) -> Path:
    package = Path(__file__).resolve().parents[1]
    for path in (package.parents[1] / "jobs" / name, package / "_jobs" / name):
        if path.is_file():
            return path
    raise UserError(f"job {name} is in neither this checkout nor this installation: reinstall siclip-platform")
