"""Finds and reads a declarative search space."""

from __future__ import annotations

from collections.abc import Collection
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from siclip.errors import UserError
from siclip_platform.metrics import METRICS
from siclip_platform.spaces.definition import Condition, Parameter, SearchSpace
from siclip_platform.spaces.file_parts import CheckValue, read_text
from siclip_platform.spaces.parsing import parse_space
from siclip_platform.spaces.strategy import with_policy

__all__ = ["CheckValue", "Condition", "Parameter", "SearchSpace", "load_space", "space_folders"]

SUFFIX = ".yaml"
CHECKOUT = Path(__file__).resolve().parents[3]


def load_space(
    name_or_path: str,
    *,
    metrics: Collection[str] = METRICS,
    check_value: CheckValue | None = None,
    sampler: str | None = None,
    scheduler: str | None = None,
) -> SearchSpace:
    """Read and validate a search space.

    ``name_or_path`` is looked for as a path, then in ``./search_spaces``, in the checkout and among the
    packaged spaces, with ``.yaml`` added where it has no suffix. ``check_value(path, value)`` is asked about
    every choice value and end of a range that its recipe field accepts, and returns why it is wrong, or None.
    ``sampler`` and ``scheduler``: names that come before the file's.

    Raises:
        UserError: there is no such space (with the places looked at and the spaces there are), or the file is
            wrong (with one line ``file:line: problem; remedy`` for each problem), or the sampler or scheduler that
            was asked for cannot search it.
    """
    source = _find(name_or_path)
    text = read_text(source, "search space")
    return with_policy(parse_space(text, str(source), metrics, check_value), sampler, scheduler)


def space_folders() -> list[Traversable]:
    """Where a space is looked for by name, in this order; not all of them need exist."""
    folders: list[Traversable] = [Path("search_spaces")]
    if (CHECKOUT / "pyproject.toml").is_file():  # not in an installed package
        folders.append(CHECKOUT / "search_spaces")
    return [*folders, files("siclip_platform") / "_search_spaces"]


def _find(name: str) -> Traversable:
    filename = name if Path(name).suffix in {".yaml", ".yml"} else f"{name}{SUFFIX}"
    candidates: list[Traversable] = [Path(name), Path(filename)]
    candidates += [folder / filename for folder in space_folders()]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    looked = "".join(f"\n  {place}" for place in dict.fromkeys(map(str, candidates)))
    there_are = ", ".join(_names()) or "none"
    raise UserError(f"no search space {name!r}; give the path of a file or one of: {there_are}. Looked for:{looked}")


def _names() -> list[str]:
    """Names of the spaces in the folders."""
    names = {
        Path(item.name).stem
        for folder in space_folders()
        if folder.is_dir()
        for item in folder.iterdir()
        if item.name.endswith(SUFFIX)
    }
    return sorted(names)


def space_text(name_or_path: str) -> str:
    """The text of a space's file, which is looked for as by `load_space`.

    Raises:
        UserError: there is none.
    """
    return read_text(_find(name_or_path), "search space")
