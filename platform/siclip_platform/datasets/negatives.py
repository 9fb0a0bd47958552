"""The false captions of a sample, which its ``meta`` may name under ``negatives``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

KIND = re.compile(r"[\w .:/-]+")
"""A kind becomes part of a metric's name, and MLflow allows these characters."""


def negatives_of(meta: str | None) -> Mapping[str, tuple[str, ...]]:
    """The false captions by kind, such as ``{"swap_att": ("a red cat and a blue dog",)}``; empty if there are none.

    Every column of a source that an import does not know is kept in ``meta``, so ``negatives`` may be anything. Only
    a mapping of kinds to a text, or to a list of texts, is read as false captions.

    Args:
        meta: JSON text.
    """
    found = _read(meta).get("negatives")
    if not isinstance(found, dict):
        return {}
    texts = {kind: tuple(given) if isinstance(given, list) else (given,) for kind, given in found.items()}
    ours = all(KIND.fullmatch(kind) and given and all(map(_is_text, given)) for kind, given in texts.items())
    return texts if ours else {}


def _read(meta: str | None) -> dict[str, Any]:
    try:
        tree = json.loads(meta or "{}")
    # A dataset that another program wrote may have any text here.
    except (ValueError, RecursionError):
        return {}
    return tree if isinstance(tree, dict) else {}


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())
