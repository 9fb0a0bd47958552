"""Ablations: named settings × seeds around one recipe, in the order in which they build on each other."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal, cast, get_args

import yaml

from siclip.errors import UserError
from siclip_platform.metrics import METRICS, metric_mode
from siclip_platform.recipes.fields import path_problem, read_value
from siclip_platform.spaces.definition import Scalar
from siclip_platform.spaces.document import Document, Problem, closest
from siclip_platform.spaces.load import space_folders
from siclip_platform.spaces.parsing import CheckValue

Question = Literal["scaling", "sharing", "pair_matching", "caption_ratio", "divergence", "teacher"]
QUESTIONS: tuple[str, ...] = get_args(Question)
FOLDER = "studies"
OWN_TEACHER = "teacher"
KEYS = ("name", "question", "metric", "baseline", "seeds", "teachers", "settings")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One row of an ablation: what it changes in the base, with all that it extends. ``teacher``: a name in the
    study's ``teachers``, or ``teacher`` for the one that the command names or trains."""

    name: str
    label: str
    values: Mapping[str, Scalar]
    extends: str | None = None
    teacher: str = OWN_TEACHER


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """A study file. ``question``: the open question that it answers, if it is one. ``teachers``: further teachers,
    each by what it changes in the recipe of the one that the command trains."""

    name: str
    metric: str
    baseline: str
    settings: tuple[Setting, ...]
    seeds: int = 3
    question: str | None = None
    teachers: Mapping[str, Mapping[str, Scalar]]

    def only(self, names: list[str]) -> tuple[Setting, ...]:
        """Some of the settings, in the file's order, the baseline always among them; all without names.

        Raises:
            UserError: there is no such setting.
        """
        there = [setting.name for setting in self.settings]
        for name in names:
            if name not in there:
                raise UserError(
                    f"study {self.name!r} has no setting {name!r}{closest(name, there)}; it has {', '.join(there)}"
                )
        return tuple(s for s in self.settings if not names or s.name in (*names, self.baseline))


def load_ablation(name_or_path: str, *, check_value: CheckValue | None = None) -> Ablation:
    """Read and validate a study file: a path, or a name in ``studies/`` of the folders of the spaces.

    Raises:
        UserError: there is no such study, or the file is wrong (one line ``file:line: problem; remedy`` for each
            problem).
    """
    source = _find(name_or_path)
    try:
        text = source.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"study {source} cannot be read: {error}; it must be a UTF-8 text file") from None
    return parse_ablation(text, str(source), check_value)


def ablation_names() -> list[str]:
    """Of the studies in the folders."""
    folders = [folder / FOLDER for folder in space_folders()]
    items = [item.name for folder in folders if folder.is_dir() for item in folder.iterdir()]
    return sorted({Path(item).stem for item in items if item.endswith(".yaml")})


def _find(name: str) -> Traversable:
    places: list[Traversable] = [Path(name)]
    places += [folder / FOLDER / f"{name}.yaml" for folder in space_folders()]
    for place in places:
        if place.is_file():
            return place
    there_are = ", ".join(ablation_names()) or "none"
    raise UserError(f"no study {name!r}{closest(name, ablation_names())}; give a file or one of: {there_are}")


def parse_ablation(text: str, place: str, check_value: CheckValue | None = None) -> Ablation:
    """A study file's text → `Ablation`; ``place`` names the file in messages.

    Raises:
        UserError: one line ``place:line: problem; remedy`` for each problem.
    """
    document = Document(text, place)
    reader = _AblationReader(document, check_value)
    with document.noting():
        reader.read()
    document.raise_problems()
    return Ablation(**reader.parts)


class _AblationReader:
    """Reads a study file's parts; what is wrong ends up in the document's problems."""

    def __init__(self, document: Document, check_value: CheckValue | None) -> None:
        self.document = document
        self.check_value = check_value
        self.parts: dict[str, Any] = {"teachers": {}}
        self.settings: dict[str, Setting] = {}

    def read(self) -> None:
        required = ("name", "metric", "baseline", "settings")
        fields = self.document.fields(self.document.root, "the study", KEYS, required)
        with self.document.noting():
            if "teachers" in fields:
                self._read_teachers(fields["teachers"])
        for key, node in fields.items():
            with self.document.noting():
                if key == "settings":
                    self._read_settings(node)
                elif key != "teachers":
                    self.parts[key] = self._read_head(key, node)
        baseline = self.parts.get("baseline")
        with self.document.noting():
            if "settings" in fields and "baseline" in fields and baseline not in self.settings:
                hint = closest(str(baseline), self.settings) or "; name one of the settings"
                raise Problem(fields["baseline"], f"baseline {baseline!r} is no setting of the study{hint}")

    def _read_head(self, key: str, node: yaml.Node) -> Any:
        if key == "seeds":
            seeds = self.document.scalar(node, key)
            if isinstance(seeds, bool) or not isinstance(seeds, int) or seeds < 1:
                raise Problem(node, f"seeds {seeds!r} is not a whole number above 0; write how many")
            return seeds
        value = self.document.text(node, key)
        allowed = {"metric": [m for m in METRICS if not m.startswith("test/")], "question": list(QUESTIONS)}.get(key)
        if allowed is not None and value not in allowed:
            hint = closest(value, allowed) or f"; choose one of {', '.join(allowed)}"
            raise Problem(node, f"unknown {key} {value!r}{hint}")
        if key == "name" and not re.fullmatch(r"[\w.-]+", value):
            raise Problem(node, f"name {value!r} is not plain; use letters, digits, '_', '-' and '.'")
        return value

    def _read_teachers(self, node: yaml.Node) -> None:
        for name, key_node, value_node in self.document.items(node, "teachers"):
            with self.document.noting():
                if name == OWN_TEACHER or not re.fullmatch(r"\w+", name):
                    raise Problem(key_node, f"teacher's name {name!r}: use letters, digits and '_', not 'teacher'")
                self.parts["teachers"][name] = self._read_values(f"teacher {name}", value_node, searched=False)

    def _read_settings(self, node: yaml.Node) -> None:
        for name, key_node, value_node in self.document.items(node, "settings"):
            with self.document.noting():
                if not re.fullmatch(r"[\w.+-]+", name):
                    raise Problem(key_node, f"setting {name!r}: use letters, digits, '_', '-', '+' and '.'")
                setting = self._read_setting(name, value_node)
                for other in self.settings.values():
                    if (other.values, other.teacher) == (setting.values, setting.teacher):
                        raise Problem(key_node, f"setting {name} is the same as {other.name}; change or remove one")
                self.settings[name] = setting
        if len(self.settings) < 2 and not self.document.problems:
            raise Problem(node, "settings has fewer than two; an ablation compares")
        self.parts["settings"] = tuple(self.settings.values())

    def _read_setting(self, name: str, node: yaml.Node) -> Setting:
        fields = self.document.fields(node, f"setting {name}", ("label", "extends", "set", "teacher"), ())
        values: dict[str, Scalar] = {}
        teacher, parent = OWN_TEACHER, None
        if "extends" in fields:
            parent = self.document.text(fields["extends"], f"extends of {name}")
            if parent not in self.settings:
                hint = closest(parent, self.settings) or "; name one above it"
                raise Problem(fields["extends"], f"setting {name} extends {parent!r}, which is not above it{hint}")
            values |= self.settings[parent].values
            teacher = self.settings[parent].teacher
        if "teacher" in fields:
            teacher = self.document.text(fields["teacher"], f"teacher of {name}")
            known = [OWN_TEACHER, *self.parts["teachers"]]
            if teacher not in known:
                hint = closest(teacher, known) or f"; there are {', '.join(known)}"
                raise Problem(fields["teacher"], f"setting {name} names teacher {teacher!r}{hint}")
        if "set" in fields:
            values |= self._read_values(name, fields["set"])
        label = self.document.text(fields["label"], f"label of {name}") if "label" in fields else name
        return Setting(name=name, label=label, values=values, extends=parent, teacher=teacher)

    def _read_values(self, what: str, node: yaml.Node, searched: bool = True) -> dict[str, Scalar]:
        values: dict[str, Scalar] = {}
        for path, key_node, value_node in self.document.items(node, f"set of {what}"):
            with self.document.noting():
                problem = path_problem(path)
                if problem and (searched or path not in ("training.steps", "training.seed")):
                    raise Problem(key_node, problem.replace("searched", "varied"))
                value = self.document.scalar(value_node, f"{path} of {what}")
                held, refusal = read_value(path, value)
                if refusal is None and self.check_value is not None:
                    refusal = self.check_value(path, held)
                if refusal is not None:
                    raise Problem(value_node, f"{value!r} does not fit {path}: {refusal}; change or remove it")
                values[path] = cast(Scalar, held)
        return values


def mode_of(ablation: Ablation) -> str:
    """Which way the study's metric is better."""
    return metric_mode(ablation.metric)
