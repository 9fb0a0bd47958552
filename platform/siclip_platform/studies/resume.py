"""``--resume``: which options of a study may change, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from siclip.errors import UserError
from siclip_platform.recipes.recipe import Recipe
from siclip_platform.spaces.ablation import ablation_text
from siclip_platform.spaces.load import space_text
from siclip_platform.storage import AnyPath
from siclip_platform.studies.options import Options, check_study_name
from siclip_platform.studies.study_file import (
    ABLATION,
    COMMANDS,
    FILE,
    SPACE,
    StudyFile,
    StudyKind,
    fetch_study,
    read_study,
)

PROCESS = frozenset({"out", "resume", "address", "verbose"})
"""Options of one process, which no study stores."""
CHANGEABLE = frozenset(
    {"trials", "concurrent", "workers", "confirm", "rerun", "disk_budget", "tracking_uri", "artifacts", "checkpoints"}
)
"""Options that change nothing in what is already computed. ``checkpoints`` must contain the study."""
FLAGS = {"register_as": "--register", "settings": "--setting", "ablation": "STUDY"}
COPIED: dict[str, tuple[str, Callable[[str], str]]] = {
    "space": (SPACE, space_text),
    "ablation": (ABLATION, ablation_text),
}
"""Options that name a file: its copy in the study's folder, and how to read the file that is named."""


@dataclass(frozen=True)
class Difference:
    """An option that was given and does not agree with the study."""

    option: str
    has: Any
    asked: Any

    def __str__(self) -> str:
        return f"{self.option}: the study has {_shown(self.has)}, {_shown(self.asked)} was given"


def resumed(
    kind: StudyKind,
    asked: Options,
    given: Collection[str],
    differences: Callable[[StudyFile], Sequence[Difference]] = lambda study: (),
) -> StudyFile:
    """The study ``asked.resume``, with the given options that may change.

    Args:
        kind: of the command that resumes it.
        asked: the options of the command line, defaults included.
        given: fields of `Options` that the command line gave.
        differences: compares what the command line gave besides these fields.

    Raises:
        UserError: there is no such study, another command began it, it was begun by a version that stored too little,
            or an option was given that neither agrees with the study nor may change.
    """
    assert asked.resume
    check_study_name(asked.resume, "--resume")
    folder = asked.out / asked.resume
    if asked.checkpoints and not (folder / FILE).is_file():
        fetch_study(folder, asked.checkpoints)
    study = read_study(folder)
    _check_kind(study, kind)
    refused = [*_option_differences(study, asked, given), *differences(study)]
    if refused:
        raise UserError(
            "\n  ".join([f"study {study.name} was begun with other options:", *map(str, refused)])
            + "\nomit them to resume it, or begin a new study without --resume"
        )
    changed = {name: getattr(asked, name) for name in (CHANGEABLE & set(given)) | PROCESS}
    return study.model_copy(update={"options": study.options.model_copy(update=changed)})


def _check_kind(study: StudyFile, kind: StudyKind) -> None:
    if study.kind != kind:
        raise UserError(
            f"{study.name} was begun by siclip-platform {COMMANDS[study.kind]}, not {COMMANDS[kind]}: "
            f"resume it with {study.resume_command}"
        )
    if study.kind == "ablation" and not (study.folder / ABLATION).is_file():
        raise UserError(
            f"{study.folder} lacks {ABLATION}: the version that began {study.name} did not store it. Resume it with "
            "that version, or begin a new one, which reuses the finished trainings of the same MLflow store"
        )


def _option_differences(study: StudyFile, asked: Options, given: Collection[str]) -> list[Difference]:
    fields = [name for name in Options.model_fields if name in given and name not in CHANGEABLE | PROCESS]
    found = []
    for name in fields:
        has, asked_value = getattr(study.options, name), getattr(asked, name)
        if name in COPIED and (study.folder / COPIED[name][0]).is_file():
            has, asked_value = _copied(name, study, asked_value)
        if name == "data":
            has = study.options.dataset_folder
        if has != asked_value:
            found.append(Difference(flag_of(name), has, asked_value))
    if "checkpoints" in given and not _holds(asked.checkpoints, study):
        found.append(
            Difference("--checkpoints", study.options.checkpoints or f"those in {study.folder}", asked.checkpoints)
        )
    return found


def _copied(field: str, study: StudyFile, named: str) -> tuple[str, str]:
    """The study's space or ablation and the named one; equal if their texts are."""
    file, read = COPIED[field]
    if read(named) == (study.folder / file).read_text(encoding="utf-8"):
        return named, named
    has = getattr(study.options, field)
    return (has, named) if has != named else (f"an earlier text of {has}", f"{named} as it is now")


def _holds(checkpoints: AnyPath | None, study: StudyFile) -> bool:
    """Whether the study writes its checkpoints there, or they were moved there."""
    if checkpoints is None or checkpoints == study.options.checkpoints:
        return True
    file = checkpoints / study.name / FILE
    return file.is_file() and json.loads(file.read_bytes()).get("key") == study.key


def recipe_differences(has: Recipe, asked: Recipe) -> list[Difference]:
    """The fields in which two recipes differ, by dotted path."""
    before, now = has.flat(), asked.flat()
    return [Difference(path, before.get(path), now[path]) for path in now if now[path] != before.get(path)]


def flag_of(field: str) -> str:
    """How the command line names a field of `Options`."""
    return FLAGS.get(field, f"--{field.replace('_', '-')}")


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "all"
    return "(not set)" if value is None else str(value)
