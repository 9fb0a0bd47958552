"""Class names and prompt templates: the dataset folder's own files, or open_clip's for the ImageNet sets."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siclip.evaluation.classification import Templates
from siclip_platform.errors import UserError

CLASSNAMES = "classnames.txt"
TEMPLATES = "zeroshot_classification_templates.txt"
PROMPTS = "zeroshot_classification_prompts.json"
IMAGENETS = ("imagenet1k", "imagenet_sketch", "imagenetv2")
"""The sets that have all 1000 classes in open_clip's order."""


@dataclass(frozen=True)
class ClassPrompts:
    """``classnames``: None where no file names them. ``source``: a line that says where all this is from."""

    classnames: tuple[str, ...] | None
    templates: Templates
    source: str


def class_prompts(folder: Path, set_name: str) -> ClassPrompts:
    """What the folder says; where it says nothing, open_clip's names for the ImageNet sets and its 80 ImageNet
    templates for them, and its 7 simple ones for other sets.

    Raises:
        UserError: a file is empty, has an empty line among others, or is no JSON.
    """
    import open_clip

    full = set_name in IMAGENETS
    names = _lines(folder / CLASSNAMES)
    sources = [CLASSNAMES if names else "open_clip's class names" if full else ""]
    if names is None and full:
        names = tuple(open_clip.IMAGENET_CLASSNAMES)
    templates: Templates | None = _json(folder / PROMPTS) or _lines(folder / TEMPLATES)
    sources.append(PROMPTS if isinstance(templates, dict) else TEMPLATES)
    if templates is None:
        own = open_clip.OPENAI_IMAGENET_TEMPLATES if full else open_clip.SIMPLE_IMAGENET_TEMPLATES
        templates = tuple(template("{c}") for template in own)
        sources[-1] = f"open_clip's {len(templates)} ImageNet templates"
    return ClassPrompts(names, templates, ", ".join(source for source in sources if source))


def class_prompts_missing(folder: Path) -> str:
    return f"{folder} has no {CLASSNAMES}: write one class name a line, in the order of the labels"


def _lines(path: Path) -> tuple[str, ...] | None:
    if not path.is_file():
        return None
    lines = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    while lines and not lines[-1]:
        lines = lines[:-1]
    if not lines or "" in lines:
        where = f"line {lines.index('') + 1} is empty" if lines else "it is empty"
        raise UserError(f"{path}: {where}; write one a line")
    return lines


def _json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        tree: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    return tree
