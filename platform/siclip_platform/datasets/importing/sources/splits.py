"""The split that a name in a source tells: of a file, a folder, or a value of the column ``split``."""

from __future__ import annotations

import re
from typing import Any

from siclip_platform.datasets.importing.sources.sample import Reason, Rejection

SPLITS = {
    "train": ("train", "training", "restval"),  # restval: Karpathy's name for images that everyone trains on
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
NAMES = {alias: split for split, aliases in SPLITS.items() for alias in aliases}
SEPARATORS = re.compile(r"[-._ ]|(?<=[a-z])(?=[0-9])")  # train-00000-of-00001, val_list, train2017


def split_of(path: str, *, folders_only: bool = False) -> str | None:
    """Return the split that the name of a file tells, or else the innermost folder that tells one.

    A name tells a split if one of its words is a name of exactly one split, as in Hugging Face ``datasets``.

    Args:
        path: relative to the source.
        folders_only: the file's own name tells nothing.
    """
    *folders, name = path.lower().split("/")
    for part in reversed(folders if folders_only else [*folders, name.partition(".")[0]]):
        told = {NAMES[word] for word in SEPARATORS.split(part) if word in NAMES}
        if len(told) == 1:
            return told.pop()
    return None


def split_named(value: Any) -> str | None:
    """Return the split of a value of the column ``split``.

    Raises:
        Rejection: the value is no name.
    """
    if value is None or value == "":
        return None
    name = str(value).strip().lower()
    if not isinstance(value, str) or not re.fullmatch("[a-z][a-z0-9_]*", name):
        raise Rejection(Reason.DAMAGED_ROW, f"the split {value!r} is no name of a split")
    return NAMES.get(name, name)
