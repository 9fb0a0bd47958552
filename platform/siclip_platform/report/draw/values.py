"""Format numbers for readers, and the table that HTML and Markdown both render."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

MISSING = "not recorded"
SHARES = ("acc1", "acc5", "acc", "mean_per_class_recall", "pair_masked_share", "data_wait_share")

WAYS = {"image_retrieval_": "text → image ", "text_retrieval_": "image → text "}


@dataclass(frozen=True)
class Cell:
    """One table cell.

    Attributes:
        text: What is shown.
        value: The exact value, by which columns are sorted; None sorts last.
        link: An http(s) URL.
    """

    text: str
    value: float | str | None = None
    link: str | None = None


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table.

    Attributes:
        key: Unique name within the report: the table's HTML id and the name of its CSV file.
        numeric: For each column, whether it contains numbers.
        marked: Indices of highlighted rows.
        limit: Number of rows shown; the CSV file has all.
        note: A line below the heading.
    """

    key: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    numeric: Sequence[bool]
    sortable: bool = False
    marked: frozenset[int] = frozenset()
    limit: int = 200
    note: str = ""

    @property
    def shown(self) -> Sequence[Sequence[Cell]]:
        return self.rows[: self.limit]

    @property
    def omission(self) -> str:
        """A sentence on the rows that are not shown; empty if all are."""
        hidden = len(self.rows) - self.limit
        return f"{hidden:,} more rows are in {self.key}.csv." if hidden > 0 else ""


def is_share(name: str) -> bool:
    """Whether a metric is a fraction between 0 and 1, shown as a percentage."""
    last = name.rpartition("/")[2]
    # Evaluations add prefixes and suffixes to these names.
    return last in SHARES or any(part in last for part in ("recall@", "beats_all_negatives", "accuracy"))


def metric_label(name: str) -> str:
    """``test/image_retrieval_recall@1`` → ``test text → image R@1``: the one spelling of a metric in text."""
    for stored, shown in WAYS.items():
        name = name.replace(stored, shown)
    return name.replace("/", " ").replace("recall@", "R@").replace("_", " ")


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
    """A metric's value; shares as percentages."""
    text = f"{100 * value:.1f} %" if value is not None and is_share(name) else None
    return _nonfinite(value) or Cell(text or short(value or 0.0), value)


def count_cell(value: float | None) -> Cell:
    return _nonfinite(value) or Cell(f"{int(value or 0):,}", value)


def seconds_cell(value: float | None) -> Cell:
    return _nonfinite(value) or Cell(duration(value or 0.0), value)


def points(name: str, difference: float) -> str:
    """A signed difference of two values of a metric; for shares in percentage points."""
    text = f"{100 * difference:+.1f} points" if is_share(name) else f"{difference:+.4g}"
    # U+2212 is as wide as the plus sign, so signed columns align, and no line breaks after it.
    return text.replace("-", "−", 1)


def interval(name: str, low: float, high: float) -> str:
    """The interval of a difference in the units of `points`; empty if it is not known."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return ""
    scale, form = (100, "+.1f") if is_share(name) else (1, "+.3g")
    return f"{low * scale:{form}} to {high * scale:{form}}".replace("-", "−")


def probability(value: float) -> str:
    """A p value to three decimal places."""
    if math.isnan(value):
        return "—"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def duration(seconds: float) -> str:
    if seconds < 600:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def byte_size(count: float) -> str:
    """Bytes in decimal units, as disks are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def plural(count: int, one: str) -> str:
    """``1 trial``, ``2 trials``."""
    return f"{count:,} {one}" if count == 1 else f"{count:,} {one}s"


def short(value: float) -> str:
    """Four significant digits, or whole numbers from 1e4 to 1e9; no exponent between 1e-4 and 1e9."""
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:.4g}"


def parameter_cell(value: str | None) -> Cell:
    """A parameter as MLflow stores it, a string. Floats are shown shortened; the cell's value is exact."""
    if value is None:
        return Cell("—")
    try:
        number = float(value)
    except ValueError:
        return Cell(value, value)
    # Integers keep all digits: they may be seeds or sizes.
    if not math.isfinite(number) or value.lstrip("+-").isdigit():
        return Cell(value, number if math.isfinite(number) else None)
    return Cell(short(number), number)
