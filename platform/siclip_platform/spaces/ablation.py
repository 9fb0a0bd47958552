"""Ablations: named settings × seeds around one recipe, in the order in which they build on each other."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Field, PlainValidator, ValidationInfo, field_validator

from siclip.errors import UserError
from siclip_platform.recipes.fields import path_problem
from siclip_platform.recipes.problems import KEY, Problems, closest, refusal
from siclip_platform.recipes.yaml_file import read_model
from siclip_platform.spaces.definition import Scalar
from siclip_platform.spaces.file_parts import Checks, CheckValue, FilePart, Metric, PlainName, Text, read_text
from siclip_platform.spaces.load import space_folders

Question = Literal["scaling", "sharing", "pair_matching", "caption_ratio", "divergence", "teacher"]
QUESTIONS: tuple[str, ...] = get_args(Question)
FOLDER = "studies"
OWN_TEACHER = "teacher"
TEACHER_VARIES = ("training.steps", "training.epochs", "training.seed")
REMEDY = "compare with search_spaces/studies/sharing.yaml"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One row of an ablation.

    Attributes:
        values: what it changes in the starting recipe, including everything that it extends.
        extends: the setting that it builds on.
        teacher: a name in the study's ``teachers``, or ``teacher`` for the one that the command names or trains.
    """

    name: str
    label: str
    values: Mapping[str, Scalar]
    extends: str | None = None
    teacher: str = OWN_TEACHER


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """A study file.

    Attributes:
        baseline: the setting that all others are compared with.
        question: the open question that the study answers, if it is one.
        teachers: further teachers, each by what it changes in the recipe of the one that the command trains.
    """

    name: str
    metric: str
    baseline: str
    settings: tuple[Setting, ...]
    seeds: int = 3
    question: str | None = None
    teachers: Mapping[str, Mapping[str, Scalar]]

    def only(self, names: list[str]) -> tuple[Setting, ...]:
        """These settings and the baseline, in the file's order; all settings if there are no names.

        Raises:
            UserError: there is no such setting.
        """
        known = [setting.name for setting in self.settings]
        for name in names:
            if name not in known:
                raise UserError(
                    f"study {self.name!r} has no setting {name!r}{closest(name, known)}; it has {', '.join(known)}"
                )
        return tuple(s for s in self.settings if not names or s.name in (*names, self.baseline))


def load_ablation(name_or_path: str, *, check_value: CheckValue | None = None) -> Ablation:
    """Read and validate a study file: a path, or a name in ``studies/`` of the folders of the spaces.

    Raises:
        UserError: there is no such study, or the file is wrong: one line ``file:line: path: problem; remedy`` for
            each problem.
    """
    source = _find(name_or_path)
    return parse_ablation(read_text(source, "study"), str(source), check_value)


def ablation_text(name_or_path: str) -> str:
    """The text of a study file, found as by `load_ablation`.

    Raises:
        UserError: there is no such study, or it cannot be read.
    """
    return read_text(_find(name_or_path), "study")


def ablation_names() -> list[str]:
    """Names of the studies in the folders."""
    folders = [folder / FOLDER for folder in space_folders()]
    items = [item.name for folder in folders if folder.is_dir() for item in folder.iterdir()]
    return sorted({Path(item).stem for item in items if item.endswith(".yaml")})


def _find(name: str) -> Traversable:
    candidates: list[Traversable] = [Path(name)]
    candidates += [folder / FOLDER / f"{name}.yaml" for folder in space_folders()]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    known = ", ".join(ablation_names()) or "none"
    raise UserError(f"no study {name!r}{closest(name, ablation_names())}; give a file or one of: {known}")


def parse_ablation(text: str, where: str, check_value: CheckValue | None = None) -> Ablation:
    """Read an ablation from YAML text.

    Args:
        text: the file's text.
        where: the file's name, for messages.
        check_value: see `siclip_platform.spaces.file_parts.CheckValue`.

    Raises:
        UserError: one line ``where:line: path: problem; remedy`` for each problem.
    """
    checks = Checks(check_value=check_value)
    read = read_model(text, where, _AblationFile, remedy=REMEDY, strict=True, context=checks)
    return Ablation(**{name: getattr(read, name) for name in type(read).model_fields})


def _changes(values: Any, info: ValidationInfo[Checks], *, also: tuple[str, ...] = ()) -> dict[str, Scalar]:
    """Recipe paths and their values; ``also``: paths that may be changed here although no study varies them."""
    if not isinstance(values, dict):
        raise refusal("not a mapping; write {PATH: VALUE}")
    problems = Problems()
    held: dict[str, Scalar] = {}
    for path, value in values.items():
        refused = path_problem(path)
        if refused and path not in also:
            problems.add(refused.replace("searched", "varied"), path, KEY)
            continue
        with problems.at(path):
            held[path] = info.context.fit(path, value)
    problems.check()
    return held


def _teacher_name(name: str) -> str:
    if name == OWN_TEACHER or not re.fullmatch(r"\w+", name):
        raise refusal(f"not a plain name; use letters, digits and '_', not {OWN_TEACHER!r}")
    return name


Changes = Annotated[dict[str, Any], PlainValidator(_changes)]
TeacherChanges = Annotated[dict[str, Any], PlainValidator(partial(_changes, also=TEACHER_VARIES))]
TeacherName = Annotated[str, AfterValidator(_teacher_name)]


class _SettingEntry(FilePart):
    """A setting in the file, without what it extends."""

    label: Text | None = None
    extends: Text | None = None
    set: Changes = Field({})
    teacher: Text | None = None


class _AblationFile(FilePart):
    """The file as a whole. Fields that refer to others come after them."""

    name: PlainName
    question: Question | None = None
    metric: Metric
    seeds: int = Field(3, ge=1, le=1000)
    teachers: dict[TeacherName, TeacherChanges] = Field({})
    settings: tuple[Setting, ...]
    baseline: Text

    @field_validator("settings", mode="plain")
    @classmethod
    def _read_settings(cls, entries: Any, info: ValidationInfo[Checks]) -> tuple[Setting, ...]:
        if not isinstance(entries, dict):
            raise refusal("not a mapping; write `name: {set: {PATH: VALUE}}` lines")
        # One by one: a setting may extend only those above it.
        problems = Problems()
        read: dict[str, Setting] = {}
        for name, entry in entries.items():
            if not re.fullmatch(r"[\w.+-]+", name):
                problems.add("not a plain name; use letters, digits, '_', '-', '+' and '.'", name, KEY)
            valid = problems.validated(_SettingEntry, entry, name, context=info.context)
            if valid is None:
                continue
            setting = _resolve(name, valid, read, list(info.data.get("teachers", {})), problems)
            for other in read.values():
                if (other.values, other.teacher) == (setting.values, setting.teacher):
                    problems.add(f"it is the same as {other.name}; change or remove one", name, KEY)
            read[name] = setting
        if len(entries) < 2:
            problems.add("has fewer than two settings; an ablation compares several")
        problems.check()
        return tuple(read.values())

    @field_validator("baseline", mode="after")
    @classmethod
    def _is_a_setting(cls, baseline: str, info: ValidationInfo) -> str:
        names = [setting.name for setting in info.data.get("settings", ())]
        if names and baseline not in names:
            raise refusal(
                f"{baseline!r} is no setting of the study{closest(baseline, names) or '; name one of them'}"
            )
        return baseline


def _resolve(
    name: str, entry: _SettingEntry, above: Mapping[str, Setting], teachers: list[str], problems: Problems
) -> Setting:
    """The setting with everything that it extends; unknown names are noted in ``problems``."""
    values: dict[str, Scalar] = {}
    teacher = OWN_TEACHER
    if entry.extends and entry.extends not in above:
        hint = closest(entry.extends, above) or "; name a setting above it"
        problems.add(f"{entry.extends!r} is not above it{hint}", name, "extends")
    elif entry.extends:
        values |= above[entry.extends].values
        teacher = above[entry.extends].teacher
    known = [OWN_TEACHER, *teachers]
    if entry.teacher and entry.teacher not in known:
        hint = closest(entry.teacher, known) or f"; the study has {', '.join(known)}"
        problems.add(f"unknown teacher {entry.teacher!r}{hint}", name, "teacher")
    return Setting(
        name=name,
        label=entry.label or name,
        values=values | entry.set,
        extends=entry.extends,
        teacher=entry.teacher or teacher,
    )
