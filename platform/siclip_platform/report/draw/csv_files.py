"""CSV that a spreadsheet shows as it is: text that it would run as a formula gets an apostrophe before it."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from siclip_platform.report.draw.values import Table

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def write_csv(path: Path, rows: Iterable[Sequence[float | int | str | None]]) -> None:
    """UTF-8 with a byte order mark, so that spreadsheets read other alphabets; None is an empty field."""
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file)
        for row in rows:
            writer.writerow([field(value) for value in row])


def field(value: float | int | str | None) -> str | float | int:
    """A value for one field. Text that is a number, such as ``-1.5``, stays as it is."""
    if value is None:
        return ""
    if not isinstance(value, str):
        return value
    value = value.replace("\x00", "\ufffd")
    if value.lstrip(" ").startswith(FORMULA) and not _is_number(value):
        return f"'{value}"
    return value


def table_rows(table: Table) -> Iterable[list[float | int | str | None]]:
    """The head, then exact values where a cell has one, else what it shows."""
    yield list(table.columns)
    for row in table.rows:
        yield [cell.text if cell.value is None else cell.value for cell in row]


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
