"""A commented copy of a shipped recipe, with the dataset and the teacher of its user filled in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from siclip.errors import UserError
from siclip_platform.recipes.load import find_recipe, is_shipped, load_recipe, shipped_recipes
from siclip_platform.recipes.problems import closest
from siclip_platform.recipes.yaml_file import dump_yaml

SUFFIXES = (".yaml", ".yml")
# Every shipped recipe has these two keys on lines of their own, also where it extends another.
DATA = "  path"
TEACHER = "teacher"


def summary(path: Path) -> str:
    """What a shipped recipe is for: its first line, a comment."""
    with path.open(encoding="utf-8") as file:
        return file.readline().removeprefix("#").strip()


def write_copy(name: str, file: Path, *, data: str | None, teacher: str | None) -> None:
    """Write a copy of a shipped recipe with its comments.

    Args:
        name: of the recipe.
        file: does not exist yet.
        data: the dataset to fill in; None leaves the recipe's.
        teacher: the teacher to fill in; None leaves the recipe's.

    Raises:
        UserError: there is no such recipe or folder, the file exists or has another suffix, or the recipe has no
            teacher to fill in.
    """
    if not is_shipped(name):
        hint = closest(name, shipped_recipes()) or f"; choose one of {', '.join(shipped_recipes())}"
        raise UserError(f"no shipped recipe {name!r}{hint}")
    if file.suffix not in SUFFIXES:
        raise UserError(f"{file} would not be known as a recipe's file: end its name in .yaml")
    if not file.parent.is_dir():
        raise UserError(f"folder {file.parent} does not exist: make it, or name a file elsewhere")
    recipe = load_recipe(name)
    if teacher is not None and not (recipe.model.inherit or recipe.loss.needs_teacher):
        raise UserError(f"recipe {name!r} inherits nothing and is not distilled, so a teacher has no effect: omit it")
    given = {key: value for key, value in ((DATA, data), (TEACHER, teacher)) if value is not None}
    text = _filled_in(find_recipe(name).read_text(encoding="utf-8"), given)
    try:
        with file.open("x", encoding="utf-8") as copy:
            copy.write(text)
    except FileExistsError:
        raise UserError(f"{file} exists and is not overwritten: name another file, or remove it") from None


def _filled_in(text: str, values: Mapping[str, str]) -> str:
    lines = text.splitlines()
    for key, value in values.items():
        place = next(index for index, line in enumerate(lines) if line.startswith(f"{key}: "))
        lines[place] = f"{key}: {dump_yaml(value, width=len(value) + 80).splitlines()[0]}"
    return "\n".join(lines) + "\n"
