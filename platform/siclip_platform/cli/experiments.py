"""``siclip-platform demo`` and ``train``, and how every command reads a recipe."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
import yaml

from siclip_platform.errors import UserError

if TYPE_CHECKING:
    from siclip_platform.recipe import Recipe

RecipeOption = Annotated[Path | None, typer.Option("--recipe", help="A recipe file (YAML).")]
PresetOption = Annotated[str | None, typer.Option(help="A shipped recipe: digits-teacher, digits-student.")]
DataOption = Annotated[Path | None, typer.Option(help="The dataset folder; overrides the recipe's.")]
TeacherOption = Annotated[Path | None, typer.Option(help="The teacher's checkpoint; overrides the recipe's.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="PATH=VALUE, for any recipe field.")]
OutOption = Annotated[Path, typer.Option(help="Folder for everything that is written.")]
TrackingOption = Annotated[str | None, typer.Option(help="MLflow store; default: sqlite in --out.")]
AddressOption = Annotated[str | None, typer.Option(help="A Ray cluster; default: one of our own.")]
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
    file: Path | None, preset: str | None, data: Path | None, teacher: Path | None, changes: list[str] | None
) -> Recipe:
    """The recipe that a command line names, with its overrides.

    Raises:
        UserError: neither or both of file and preset, a wrong PATH=VALUE, or an invalid recipe.
    """
    from siclip_platform.presets import preset as shipped
    from siclip_platform.recipe import load_recipe

    if (file is None) == (preset is None):
        raise UserError("name either --recipe FILE or --preset NAME")
    if file is not None:
        recipe = load_recipe(file)
    elif data is None:
        raise UserError(f"preset {preset!r} needs --data FOLDER (make one with: siclip-platform data build FOLDER)")
    else:
        recipe = shipped(str(preset), data.resolve())
    values: dict[str, object] = {}
    if data is not None:
        values["data.path"] = str(data.resolve())
    if teacher is not None:
        values["teacher"] = str(teacher.resolve())
    for change in changes or []:
        path, equals, value = change.partition("=")
        if not equals:
            raise UserError(f"--set {change!r}: write PATH=VALUE, for example training.learning_rate=1e-3")
        values[path] = _scalar(value)
    return _absolute(recipe.updated(values))


def _absolute(recipe: Recipe) -> Recipe:
    """With paths that hold in any working folder: workers run in others."""
    values: dict[str, object] = {"data.path": str(Path(recipe.data.path).resolve())}
    if recipe.teacher:
        values["teacher"] = str(Path(recipe.teacher).resolve())
    sources = recipe.distil_from
    if sources:
        values["distil_from"] = [s if s.startswith("open_clip:") else str(Path(s).resolve()) for s in sources]
    return recipe.updated(values)


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
