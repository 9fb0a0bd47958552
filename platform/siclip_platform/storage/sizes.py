"""Sizes as people write them."""

from __future__ import annotations

import re

from siclip.errors import UserError

UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def parse_bytes(text: str) -> int:
    """``20GB`` → bytes; units of 1000.

    Raises:
        UserError: the text is not a number and a unit.
    """
    found = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,15})?)\s*([KMGT]B)\s*", text, re.IGNORECASE)
    if not found:
        raise UserError(f"{text!r} is not a size: write a number and KB, MB, GB or TB, for example 20GB")
    return int(float(found[1]) * UNITS[found[2].upper()])
