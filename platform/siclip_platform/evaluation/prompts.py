"""Class names and prompt templates: from files in the set's folder, or open_clip's for the ImageNet sets."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siclip.errors import UserError
from siclip.evaluation.classification import Templates, prompts_of
from siclip_platform.storage.text_files import read_lines, read_text

CLASSNAMES = "classnames.txt"
TEMPLATES = "zeroshot_classification_templates.txt"
PROMPTS = "zeroshot_classification_prompts.json"
IMAGENETS = ("imagenet1k", "imagenet_sketch", "imagenetv2")
"""Sets with all 1000 classes in open_clip's order."""
SAME_TEMPLATES = (*IMAGENETS, "imagenet-a", "imagenet-o", "imagenet-r", "objectnet")
"""Sets for which CLIP_benchmark uses the 80 templates of ImageNet."""


@dataclass(frozen=True)
class ClassPrompts:
    """Class names and templates.

    Attributes:
        classnames: in the order of the labels; None if nothing names them.
        templates: for all classes, or prompts by class.
        source: a line that names where they are from.
    """

    classnames: tuple[str, ...] | None
    templates: Templates
    source: str


def class_prompts(folder: Path, set_name: str, class_folders: Sequence[str] = ()) -> ClassPrompts:
    """Return the class names and templates of a set.

    Files in the folder override the defaults. Default names are open_clip's for the ImageNet sets and for class
    folders named by WordNet ids, else the names of the class folders. Default templates are open_clip's 80 ImageNet
    templates for ImageNet's sets and classes, and its 7 simple ones for other sets.

    Args:
        folder: the set's folder.
        set_name: the set's name.
        class_folders: names of the folders of images by class, if it has some.

    Raises:
        UserError: a file is empty, not UTF-8 or not in its format, or a class would have no prompt.
    """
    import open_clip

    names, source = _lines(folder / CLASSNAMES), CLASSNAMES
    by_id = imagenet_names(class_folders)
    if names is None and set_name in IMAGENETS:
        names, source = tuple(open_clip.IMAGENET_CLASSNAMES), "open_clip's class names"
    elif names is None and by_id:
        names, source = by_id, "open_clip's names of the WordNet ids"
    elif names is None and class_folders:
        names, source = tuple(name.replace("_", " ") for name in class_folders), "names of the class folders"
    templates: Templates | None = _json(folder / PROMPTS)
    templates_source = PROMPTS
    if templates is None:
        templates, templates_source = _lines(folder / TEMPLATES), TEMPLATES
    if templates is None:
        imagenet = set_name in SAME_TEMPLATES or by_id
        defaults = open_clip.OPENAI_IMAGENET_TEMPLATES if imagenet else open_clip.SIMPLE_IMAGENET_TEMPLATES
        templates = tuple(template("{c}") for template in defaults)
        templates_source = f"open_clip's {len(templates)} ImageNet templates"
    _check(names or (), templates, folder)
    return ClassPrompts(names, templates, f"{source}, {templates_source}" if names else templates_source)


def imagenet_names(wnids: Sequence[str]) -> tuple[str, ...] | None:
    """Return open_clip's class names by WordNet ids (``n01440764``); None if an id is no class of ImageNet-1k.

    CLIP_benchmark uses the same names for ImageNet-A, -O and -R.
    """
    if not wnids or not all(re.fullmatch(r"n\d{8}", wnid) for wnid in wnids):
        return None
    import open_clip
    from timm.data import ImageNetInfo

    known = dict(zip(ImageNetInfo("imagenet-1k").label_names(), open_clip.IMAGENET_CLASSNAMES, strict=True))
    return tuple(known[wnid] for wnid in wnids) if known.keys() >= set(wnids) else None


def _check(names: Sequence[str], templates: Templates, folder: Path) -> None:
    """Refuse, before anything is computed, a class without a prompt."""
    any_name = () if isinstance(templates, Mapping) else ("",)
    try:
        for name in names or any_name:
            prompts_of(name, templates)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None


def class_prompts_missing(folder: Path) -> str:
    """Return the message for a set without class names."""
    return f"{folder} has no {CLASSNAMES}: write one class name per line, in the order of the labels"


def _lines(path: Path) -> tuple[str, ...] | None:
    if not path.is_file():
        return None
    lines = tuple(line.strip() for line in read_lines(path))
    # editors end files with empty lines; one between names would shift all labels after it
    while lines and not lines[-1]:
        lines = lines[:-1]
    if not lines or "" in lines:
        where = f"line {lines.index('') + 1} is empty" if lines else "it is empty"
        raise UserError(f"{path}: {where}; write one per line")
    return lines


def _json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        tree = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    whole = isinstance(tree, dict) and all(
        isinstance(own, list) and all(isinstance(prompt, str) for prompt in own) for own in tree.values()
    )
    if not whole:
        raise UserError(f'{path} is not an object of prompts: write {{"CLASS NAME": ["prompt", "prompt"], …}}')
    return dict(tree)
