"""Numbers as people read them, and the table that HTML and Markdown both render."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

MISSING = "not recorded"


@dataclass(frozen=True)
class Cell:
    """``text`` is shown; ``value`` is exact and sorts, None goes last."""

    text: str
    value: float | str | None = None


@dataclass(frozen=True, kw_only=True)
class Table:
    """``numeric``: per column whether it holds numbers. ``marked``: indices of rows that stand out."""

    key: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    numeric: Sequence[bool]
    sortable: bool = False
    marked: frozenset[int] = frozenset()


def is_share(name: str) -> bool:
    """Whether a metric is a fraction of one, shown in per cent."""
    return any(part in name for part in ("recall@", "beats_all_negatives", "accuracy"))


def text_cell(value: str | None) -> Cell:
    return Cell(value, value) if value else Cell(MISSING)


def _nonfinite(value: float | None) -> Cell | None:
    if value is None:
        return Cell(MISSING)
    if math.isnan(value):
        return Cell("NaN")
    if math.isinf(value):
        return Cell("∞" if value > 0 else "−∞")
    return None


def metric_cell(name: str, value: float | None) -> Cell:
    """A metric's value; shares of one in per cent."""
    text = f"{100 * value:.1f} %" if value is not None and is_share(name) else None
    return _nonfinite(value) or Cell(text or short(value or 0.0), value)


def count_cell(value: float | None) -> Cell:
    return _nonfinite(value) or Cell(f"{int(value or 0):,}", value)


def seconds_cell(value: float | None) -> Cell:
    return _nonfinite(value) or Cell(duration(value or 0.0), value)


def points(name: str, difference: float) -> str:
    """A signed difference of two values of a metric; of shares in percentage points."""
    text = f"{100 * difference:+.1f} points" if is_share(name) else f"{difference:+.4g}"
    return text.replace("-", "−", 1)


def duration(seconds: float) -> str:
    if seconds < 600:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def short(value: float) -> str:
    """Four significant digits, no exponent between 1e-4 and 1e7."""
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e7 else f"{value:.4g}"


def parameter_cell(value: str | None) -> Cell:
    """A parameter as MLflow keeps it, a string; floats are shown short, the cell's value is exact."""
    if value is None:
        return Cell("—")
    try:
        number = float(value)
    except ValueError:
        return Cell(value, value)
    if not math.isfinite(number) or value.lstrip("+-").isdigit():
        return Cell(value, number if math.isfinite(number) else None)
    return Cell(short(number), number)
