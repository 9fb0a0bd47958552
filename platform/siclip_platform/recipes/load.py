"""Finds and reads a recipe: a file or the name of a shipped one, with the recipes that it extends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from siclip.config import Config, TrainingConfig, replaced_by
from siclip.errors import UserError
from siclip_platform.recipes.problems import KEY, Loc, closest, explain, short
from siclip_platform.recipes.recipe import Recipe, section_of
from siclip_platform.recipes.yaml_file import LONGEST_TEXT, Document, NotYaml, by_line

SUFFIXES = (".yaml", ".yml", ".json")
EXTENDS = "extends"
REMEDY = "write its data, model and training"
PACKAGE = Path(__file__).resolve().parents[1]


def shipped_recipes() -> dict[str, Path]:
    """Name → file of the recipes that ship with the platform: those of this checkout, else of this installation."""
    checkout = PACKAGE.parents[1]
    # an installed package has no checkout, and a folder named recipes beside it would be somebody else's
    folder = checkout / "recipes" if (checkout / "pyproject.toml").is_file() else PACKAGE / "_recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def is_shipped(name: str) -> bool:
    """Whether this names a shipped recipe; everything else is the path of a file."""
    return name in shipped_recipes()


def find_recipe(name: str | Path, folder: Path = Path()) -> Path:
    """The file of a recipe.

    Args:
        name: of a shipped recipe, or the path of a file.
        folder: where a relative path starts.

    Raises:
        UserError: there is neither a shipped recipe of this name nor a file.
    """
    shipped = shipped_recipes()
    if str(name) in shipped:
        return shipped[str(name)]
    file = folder / name
    if file.is_file():
        return file
    if Path(name).suffix in SUFFIXES or len(Path(name).parts) > 1:
        raise UserError(f"recipe {file} does not exist; name a file or one of {', '.join(shipped)}")
    hint = closest(str(name), shipped) or f"; choose one of {', '.join(shipped)}, or name a file"
    raise UserError(f"no recipe {str(name)!r}{hint}")


def load_recipe(name: str | Path) -> Recipe:
    """Read a recipe from a file of YAML or JSON, together with the recipes that it extends.

    ``extends: NAME-or-FILE`` takes another recipe's fields, of which the file replaces those that it has. Sections
    are merged field by field; a list, and a mapping that is a field's value, is replaced as a whole. A relative path
    starts at the folder of the file that names it.

    Args:
        name: of a shipped recipe, or the path of a file.

    Raises:
        UserError: the file is missing or is not text, it extends itself, or it is not a valid recipe: one line
            ``file:line: path: problem; remedy`` for each problem, with the file in which the field is written.
    """
    files = _chain(find_recipe(name))
    tree, origins = _merged(files)
    recipe = None
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        for loc, text in explain(error, Recipe, tree):
            _origin(loc, origins, files).document.note(loc, text)
    if recipe is None or any(file.document.problems for file in files):
        raise UserError("\n".join(line for file in files for line in by_line(str(file.path), file.document)))
    return recipe


@dataclass(frozen=True)
class _File:
    """A file of a recipe, as it was read."""

    path: Path
    document: Document


def _chain(path: Path) -> list[_File]:
    """The file and those that it extends, each before the one that it extends."""
    files: list[_File] = []
    while True:
        file = _read(path)
        files.append(file)
        base = _base(file)
        if base is None:
            return files
        line = f"{file.path}:{file.document.line_of((EXTENDS,))}: {EXTENDS}"
        try:
            path = find_recipe(base, file.path.parent)
        except UserError as error:
            raise UserError(f"{line}: {error}") from None
        names = [other.path.resolve() for other in files]
        if path.resolve() in names:
            circle = [str(other.path) for other in files[names.index(path.resolve()) :]]
            raise UserError(f"{line}: {' → '.join([*circle, circle[0]])} is a circle; remove one {EXTENDS}")


def _read(path: Path) -> _File:
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(LONGEST_TEXT + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"recipe {path} cannot be read: {error}; it must be a UTF-8 text file") from None
    try:
        return _File(path, Document(text))
    except NotYaml as error:
        raise UserError(f"{path}:{error.line}: {error.reason}; {REMEDY}") from None


def _base(file: _File) -> str | None:
    """What the file extends, if anything.

    Raises:
        UserError: it is not a name, or the key is misspelt: without it, every field of the base would be missed.
    """
    value = file.document.value
    if not isinstance(value, dict):
        return None
    for key in value.keys() - Recipe.model_fields.keys() - {EXTENDS}:
        if hint := closest(key, [EXTENDS]):
            raise UserError(f"{file.path}:{file.document.line_of((key, KEY))}: {key}: unknown key {key!r}{hint}")
    base = value.get(EXTENDS, "")
    if EXTENDS not in value or (isinstance(base, str) and base):
        return base or None
    line = file.document.line_of((EXTENDS,))
    raise UserError(f"{file.path}:{line}: {EXTENDS}: {short(base)} is not a recipe; write a shipped name or a file")


def _merged(files: Sequence[_File]) -> tuple[Any, dict[Loc, int]]:
    """The recipe as a tree, and which of the files has each section and field."""
    origins: dict[Loc, int] = {(): 0}
    tree: dict[str, Any] = {}
    for index, file in reversed(list(enumerate(files))):
        value = file.document.value
        if not isinstance(value, dict):
            return value, {(): index}  # the validation says that it is no mapping
        own = {key: part for key, part in value.items() if key != EXTENDS}
        tree = _laid(own, tree, Recipe, (), index, origins)
    return tree, origins


def _laid(
    above: dict[str, Any],
    below: dict[str, Any],
    model: type[Config],
    loc: Loc,
    index: int,
    origins: dict[Loc, int],
) -> dict[str, Any]:
    """A section of one file over the same section of those that it extends; notes which file has what."""
    # of steps and epochs, the file has the one that it names, whatever the recipe below has
    others = replaced_by(above) if model is TrainingConfig else {}
    tree = {key: value for key, value in below.items() if key not in others}
    for key, value in above.items():
        here = (*loc, key)
        origins[here] = index
        field = model.model_fields.get(key)
        section = section_of(field) if field else None
        if section and isinstance(value, dict):
            under = tree.get(key)
            tree[key] = _laid(value, under if isinstance(under, dict) else {}, section, here, index, origins)
        else:
            tree[key] = value
    return tree


def _origin(loc: Loc, origins: dict[Loc, int], files: Sequence[_File]) -> _File:
    """The file in which something is written; of what no file has, the file of the section around it."""
    while loc not in origins:
        loc = loc[:-1]
    return files[origins[loc]]
