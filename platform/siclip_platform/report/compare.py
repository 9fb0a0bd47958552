"""Compare runs side by side: the parameters and metrics in which they differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from siclip_platform.display import printable
from siclip_platform.report.draw.values import metric_cell, parameter_cell
from siclip_platform.report.read.runs import Run

if TYPE_CHECKING:
    from rich.table import Table

ABSENT = "—"
Row = tuple[str, Sequence[str]]


def differing(runs: Sequence[Run]) -> tuple[list[Row], list[Row]]:
    """Parameters and metrics that are not equal in all runs, each with one text per run."""
    paths = sorted({path for run in runs for path in run.params})
    names = sorted({name for run in runs for name in run.metrics})
    params: list[Row] = [
        (path, [parameter_cell(run.params.get(path)).text for run in runs])
        for path in paths
        if len({run.params.get(path) for run in runs}) > 1
    ]
    metrics: list[Row] = [
        (name, [metric_cell(name, run.metrics[name]).text if name in run.metrics else ABSENT for run in runs])
        for name in names
        if not _same([run.metrics.get(name) for run in runs])
    ]
    return params, metrics


def _same(values: Sequence[float | None]) -> bool:
    """Whether all values are equal; NaN equals NaN."""
    shown = {"nan" if value is not None and math.isnan(value) else value for value in values}
    return len(shown) == 1


def comparison_tables(runs: Sequence[Run]) -> list[Table]:
    """Tables for a terminal: the runs, and the parameters and metrics in which they differ."""
    from rich.table import Table
    from rich.text import Text

    params, metrics = differing(runs)
    identities: list[Row] = [
        ("run", [run.run_id[:8] for run in runs]),
        ("kind", [run.kind or ABSENT for run in runs]),
        ("state", [run.state for run in runs]),
        ("steps", [ABSENT if run.steps is None else f"{run.steps:,}" for run in runs]),
    ]
    tables = []
    for title, rows in (("Runs", identities), ("Parameters that differ", params), ("Metrics that differ", metrics)):
        table = Table(title=title, title_justify="left")
        table.add_column("")
        for run in runs:
            # As Text, because Rich interprets a plain string as markup.
            table.add_column(Text(_line(run.label)), justify="right", overflow="fold")
        for name, texts in rows:
            table.add_row(Text(_line(name)), *(Text(_line(text)) for text in texts))
        tables.append(table)
    return tables


def _line(text: str) -> str:
    """One line of text without control characters."""
    return printable(" ".join(text.split()))
