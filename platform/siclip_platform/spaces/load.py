"""Finds and reads a search space."""

from __future__ import annotations

from collections.abc import Collection
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from siclip.errors import UserError
from siclip_platform.metrics import METRICS
from siclip_platform.spaces.definition import SearchSpace
from siclip_platform.spaces.file_parts import CheckValue, read_text
from siclip_platform.spaces.parsing import parse_space
from siclip_platform.spaces.strategy import with_policy

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

    Args:
        name_or_path: looked for as a path, then in ``./search_spaces``, in the checkout and among the packaged
            spaces; ``.yaml`` is added if it has no suffix.
        metrics: names of the metrics of evaluations.
        check_value: a further check of every choice value and end of a range that the recipe's field accepts; see
            `siclip_platform.spaces.file_parts.CheckValue`.
        sampler: name of a sampler that overrides the file's.
        scheduler: name of a scheduler that overrides the file's.

    Raises:
        UserError: there is no such space, with the spaces that exist and the paths that were tried; or the file is
            wrong, with one line ``file:line: path: problem; remedy`` for each problem; or the sampler or scheduler
            cannot search it.
    """
    source = _find(name_or_path)
    text = read_text(source, "search space")
    return with_policy(parse_space(text, str(source), metrics, check_value), sampler, scheduler)


def space_folders() -> list[Traversable]:
    """The folders in which a space is looked for by name, in this order; some may not exist."""
    folders: list[Traversable] = [Path("search_spaces")]
    if (CHECKOUT / "pyproject.toml").is_file():  # an installed package has none
        folders.append(CHECKOUT / "search_spaces")
    return [*folders, files("siclip_platform") / "_search_spaces"]


def _find(name: str) -> Traversable:
    filename = name if Path(name).suffix in {".yaml", ".yml"} else f"{name}{SUFFIX}"
    candidates: list[Traversable] = [Path(name), Path(filename)]
    candidates += [folder / filename for folder in space_folders()]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    tried = "".join(f"\n  {path}" for path in dict.fromkeys(map(str, candidates)))
    known = ", ".join(_names()) or "none"
    raise UserError(f"no search space {name!r}; give the path of a file or one of: {known}. Looked for:{tried}")


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
    """The text of a space's file, found as by `load_space`.

    Raises:
        UserError: there is no such space, or it cannot be read.
    """
    return read_text(_find(name_or_path), "search space")
