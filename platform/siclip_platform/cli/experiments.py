"""``siclip-platform demo`` and ``train``, and how every command reads a recipe."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from siclip.errors import UserError

if TYPE_CHECKING:
    from siclip_platform.recipes.recipe import Recipe

RecipeOption = Annotated[Path | None, typer.Option("--recipe", help="A recipe file (YAML).")]
PresetOption = Annotated[str | None, typer.Option(help="A shipped recipe: digits-teacher, digits-student.")]
DataOption = Annotated[str | None, typer.Option(help="The dataset, a folder or a URI; overrides the recipe's.")]
TeacherOption = Annotated[
    str | None, typer.Option(help="The teacher's checkpoint, a file or a URI; overrides the recipe's.")
]
BaseRecipeOption = Annotated[Path | None, typer.Option("--recipe", help="A recipe file; default: digits-student.")]
BaseDataOption = Annotated[
    str | None, typer.Option(help="The dataset, a folder or a URI; default: digit scenes, built if missing.")
]
BaseTeacherOption = Annotated[
    str | None, typer.Option(help="The teacher's checkpoint, a file or a URI; default: one is trained.")
]
CheckpointsOption = Annotated[
    str | None, typer.Option(help="A URI or folder for the checkpoints of Ray Train; default: in --out.")
]
ArtifactsOption = Annotated[str | None, typer.Option(help="A URI where MLflow keeps files; default: in --out.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="PATH=VALUE, for any recipe field.")]
OutOption = Annotated[Path, typer.Option(help="Folder for everything that is written.")]
JobOutOption = Annotated[Path | None, typer.Option(help="Folder for everything that is written; default: in runs/.")]
TrackingOption = Annotated[str | None, typer.Option(help="MLflow store; default: sqlite in --out.")]
AddressOption = Annotated[str | None, typer.Option(help="A Ray cluster; default: RAY_ADDRESS, else one of our own.")]
StepsOption = Annotated[int, typer.Option(min=12, help="Steps of a training; a recipe has its own.")]
TeacherStepsOption = Annotated[int, typer.Option(min=12, help="Steps of the teacher.")]
ConcurrentOption = Annotated[int | None, typer.Option(min=1, help="Trainings at the same time; default: what fits.")]
StudyOption = Annotated[
    str | None, typer.Option("--resume", metavar="STUDY", help="Go on with this study; other options as then.")
]
RegisterOption = Annotated[str | None, typer.Option(help="Name of the best model in MLflow's registry.")]
VerboseOption = Annotated[bool, typer.Option(help="Show what Ray says.")]


def demo(context: typer.Context) -> None:
    """Run jobs/tune_wikd.py on the embedded default, digit scenes; takes the job's options (--help)."""
    run_job("tune_wikd.py", context)


def train(context: typer.Context) -> None:
    """Run jobs/train_siclip.py: one recipe, trained, tracked and measured; takes the job's options (--help)."""
    run_job("train_siclip.py", context)


def run_job(name: str, context: typer.Context) -> None:
    """A script of ``jobs/`` in this process, with the options that the command was given."""
    job = _find_job(name)
    sys.argv = [str(job), *context.args]
    runpy.run_path(str(job), run_name="__main__")


def read_recipe(
    file: Path | None, preset: str | None, data: str | None, teacher: str | None, changes: list[str] | None
) -> Recipe:
    """The recipe that a command line names, with its overrides.

    Raises:
        UserError: neither or both of file and preset, a wrong PATH=VALUE, or an invalid recipe.
    """
    from siclip_platform.recipes.presets import preset as shipped
    from siclip_platform.recipes.recipe import load_recipe
    from siclip_platform.storage import as_path, located

    if (file is None) == (preset is None):
        raise UserError("name either --recipe FILE or --preset NAME")
    if file is not None:
        recipe = load_recipe(file)
    elif data is None:
        raise UserError(f"preset {preset!r} needs --data FOLDER (make one with: siclip-platform data build FOLDER)")
    else:
        recipe = shipped(str(preset), as_path(data).resolve())
    values: dict[str, object] = {}
    if data is not None:
        values["data.path"] = located(data)
    if teacher is not None:
        values["teacher"] = located(teacher)
    return _absolute(recipe.updated(values | set_values(changes)))


def named_recipe(
    file: Path | None, preset: str | None, data: str | None, teacher: str | None, changes: list[str] | None
) -> Recipe | None:
    """As `read_recipe`, for a command that has a default: None where neither a file nor a preset is named."""
    return read_recipe(file, preset, data, teacher, changes) if file or preset else None


def recipe_beside(
    file: Path | None, preset: str | None, data: str | None, teacher: str | None, changes: list[str] | None
) -> Recipe | None:
    """As `named_recipe`, for a command that only looks up a recipe's parts: ``--set`` needs one.

    Raises:
        UserError: see `read_recipe`.
    """
    if changes and not (file or preset):
        raise UserError("--set changes a recipe: name one with --recipe or --preset")
    return named_recipe(file, preset, data, teacher, changes)


def places(data: str | None, teacher: str | None) -> dict[str, Any]:
    """Fields of `Options` for ``--data`` and ``--teacher``."""
    from siclip_platform.storage import as_path

    return {"data": as_path(data) if data else None, "teacher": as_path(teacher) if teacher else None}


def set_values(changes: list[str] | None) -> dict[str, object]:
    """The fields that ``--set`` gives, by dotted path.

    Raises:
        UserError: not PATH=VALUE.
    """
    values: dict[str, object] = {}
    for change in changes or []:
        path, equals, value = change.partition("=")
        if not equals:
            raise UserError(f"--set {change!r}: write PATH=VALUE, for example training.learning_rate=1e-3")
        values[path] = _scalar(value)
    return values


def _absolute(recipe: Recipe) -> Recipe:
    """With paths that hold in any working folder: workers run in others."""
    from siclip_platform.storage import located

    values: dict[str, object] = {"data.path": located(recipe.data.path)}
    if recipe.teacher:
        values["teacher"] = located(recipe.teacher)
    sources = recipe.distil_from
    if sources:
        values["distil_from"] = [s if s.startswith("open_clip:") else located(s) for s in sources]
    if recipe.data.mix:
        values["data.mix"] = [part.model_dump() | {"path": located(part.path)} for part in recipe.data.mix]
    return recipe.updated(values)


def where_to_keep(checkpoints: str | None, artifacts: str | None) -> dict[str, Any]:
    """Fields of `Options` for ``--checkpoints`` and ``--artifacts``.

    Raises:
        UserError: a URI holds credentials.
    """
    from siclip_platform.storage import as_path

    files = as_path(artifacts).resolve() if artifacts else None
    return {
        "checkpoints": as_path(checkpoints).resolve() if checkpoints else None,
        "artifacts": files.as_uri() if isinstance(files, Path) else files and str(files),
    }


def _scalar(text: str) -> object:
    """YAML's reading of a value, and numbers such as 1e-3 that YAML takes for text."""
    try:
        return float(text) if "e" in text.lower() else yaml.safe_load(text)
    except ValueError:
        return text
    except yaml.YAMLError:
        return text


def _find_job(name: str) -> Path:
    package = Path(__file__).resolve().parents[1]
    for place in (package.parents[1] / "jobs" / name, package / "_jobs" / name):
        if place.is_file():
            return place
    raise UserError(f"job {name} is in neither this checkout nor this installation: reinstall siclip-platform")
