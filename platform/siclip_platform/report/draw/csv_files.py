"""Write CSV that is safe in a spreadsheet: text that it would run as a formula gets a leading apostrophe."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from siclip_platform.report.draw.values import Table

# Some spreadsheets also evaluate text that begins with a control character or a full-width form (CSV injection).
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def write_csv(path: Path, rows: Iterable[Sequence[float | int | str | None]]) -> None:
    """Write rows as UTF-8; None is an empty field."""
    # Spreadsheets take a file without a byte order mark for the system's legacy encoding.
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file)
        for row in rows:
            writer.writerow([field(value) for value in row])


def field(value: float | int | str | None) -> str | float | int:
    """A value as one field. Text that is a number, such as ``-1.5``, is not changed."""
    if value is None:
        return ""
    if not isinstance(value, str):
        return value
    value = value.replace("\x00", "\ufffd")
    if value.lstrip(" ").startswith(FORMULA) and not _is_number(value):
        return f"'{value}"
    return value


def table_rows(table: Table) -> Iterable[list[float | int | str | None]]:
    """The column names, then for each cell its exact value, or its text if it has none."""
    yield list(table.columns)
    for row in table.rows:
        yield [cell.text if cell.value is None else cell.value for cell in row]


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
