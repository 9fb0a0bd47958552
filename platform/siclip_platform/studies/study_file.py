"""The description of a study that its folder keeps, from which ``--resume`` continues it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from siclip.config import Config
from siclip.errors import UserError
from siclip_platform.recipes.recipe import Recipe
from siclip_platform.storage import AnyPath, copy_file
from siclip_platform.storage.atomic import write_text_atomically
from siclip_platform.studies.options import Options

FILE = "study.json"
SPACE = "space.yaml"
ABLATION = "ablation.yaml"
StudyKind = Literal["search", "demo", "ablation", "train"]
COMMANDS: dict[StudyKind, str] = {"search": "tune", "demo": "demo", "ablation": "ablate", "train": "train"}


class StudyFile(Config):
    """``study.json``: what a study was begun with.

    Attributes:
        kind: which command began it and resumes it.
        key: identifies its MLflow runs.
        base: the recipe that the study is about, with the teacher that was named, not one that it trains.
        teaching: the recipe of a teacher that the study trains.
        earlier: the recipes of a training before it was extended, the oldest first; it begins with a state of one.
    """

    version: Literal[2] = 2
    name: str
    kind: StudyKind
    key: str
    base: Recipe
    teaching: Recipe | None = None
    earlier: tuple[Recipe, ...] = ()
    options: Options

    @property
    def folder(self) -> Path:
        return self.options.out / self.name

    @property
    def checkpoints(self) -> AnyPath | None:
        """The study's folder in ``--checkpoints``; None if it has none."""
        return self.options.checkpoints / self.name if self.options.checkpoints else None

    @property
    def definition(self) -> Path | None:
        """The copy of the space or ablation in the study's folder."""
        files = [self.folder / name for name in (SPACE, ABLATION)]
        return next((file for file in files if file.is_file()), None)

    @property
    def resume_command(self) -> str:
        """The command line that resumes the study."""
        return f"siclip-platform {COMMANDS[self.kind]} --resume {self.name} --out {self.options.out}"

    def write(self) -> None:
        """Write the file to the study's folder and to its checkpoints, with its space or ablation file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text_atomically(self.folder / FILE, json.dumps(self.model_dump(mode="json"), indent=2) + "\n")
        if self.options.checkpoints:
            target = self.options.checkpoints / self.name
            if isinstance(target, Path):
                target.mkdir(parents=True, exist_ok=True)
            _copy(self.folder, target)


def _copy(source: AnyPath, target: AnyPath) -> None:
    # The description comes last: a folder that has one is complete.
    for name in (SPACE, ABLATION, FILE):
        if (source / name).is_file():
            copy_file(source / name, target / name)


def _converted(content: Mapping[str, Any]) -> dict[str, Any]:
    """A file of version 1, whose options were fields of the study, as version 2."""
    old = dict(content)
    more = old.pop("options", {})
    kept = {name: old.pop(name) for name in ("name", "kind", "key", "base") if name in old}
    renamed = {"search_seed": "seed"}
    options = {renamed.get(name, name): value for name, value in old.items()}
    options["teacher"] = kept.get("base", {}).get("teacher")
    if "workers" in more:
        options["workers"] = more["workers"]
    if "study" in more:
        options |= {"ablation": more["study"], "settings": more.get("settings", [])}
    return kept | {"kind": kept.get("kind", "search"), "options": options}


def fetch_study(folder: Path, checkpoints: AnyPath) -> None:
    """Copy a study's description from its checkpoints to ``folder``, on a machine that has not begun the study.

    Raises:
        UserError: the checkpoints do not contain it, or the store does not answer.
    """
    source = checkpoints / folder.name
    if not (source / FILE).is_file():
        raise UserError(
            f"no study {folder.name!r} in {folder.parent}, and no {source / FILE}: correct the name, --out or "
            "--checkpoints"
        )
    folder.mkdir(parents=True, exist_ok=True)
    _copy(source, folder)


def read_study(folder: Path) -> StudyFile:
    """The description in a study's folder; its ``options.out`` is the folder's parent.

    Raises:
        UserError: the folder has no description, or one that cannot be read.
    """
    path = folder / FILE
    if not path.is_file():
        others = sorted(item.parent.name for item in folder.parent.glob(f"*/{FILE}"))
        known = f"it has {', '.join(others)}" if others else "it has none"
        raise UserError(
            f"no study {folder.name!r} in {folder.parent}: give its name and the --out that it began with; {known}"
        )
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}; restore it or begin a new study") from None
    try:
        study = StudyFile.model_validate(_placed(content, folder.parent))
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, item['loc'])) or '(file)'}: {item['msg']}" for item in error.errors()]
        raise UserError(
            f"{path} does not describe a study of this version; resume it with the version that began it:\n"
            + "\n".join(lines)
        ) from None
    return study


def _placed(content: Any, out: Path) -> Any:
    """The content with the folder that it was found in, which the file does not store: folders may be moved."""
    if not isinstance(content, dict) or not isinstance(content.get("options", {}), dict):
        return content
    if "version" not in content and "trials" in content:
        content = _converted(content)
    return content | {"options": content.get("options", {}) | {"out": str(out)}}
