"""Compare runs side by side: the parameters and metrics in which they differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from siclip_platform.display import printable
from siclip_platform.report.draw.values import metric_cell, parameter_cell, points
from siclip_platform.report.read.runs import Run

if TYPE_CHECKING:
    from rich.table import Table

ABSENT = "—"
Row = tuple[str, Sequence[str]]
# The figures by which a run is judged come before those of its training and its cost.
FIRST = ("test/mean_recall@1", "validation/mean_recall@1", "test/", "validation/", "eval/", "cost/")


def differing(runs: Sequence[Run]) -> tuple[list[Row], list[Row]]:
    """Parameters and metrics that are not equal in all runs, each with one text per run.

    A metric of the second and of later runs has its difference from the first run in a further text.
    """
    paths = sorted({path for run in runs for path in run.params})
    names = sorted({name for run in runs for name in run.metrics}, key=_order)
    params: list[Row] = [
        (path, [parameter_cell(run.params.get(path)).text for run in runs])
        for path in paths
        if len({run.params.get(path) for run in runs}) > 1
    ]
    metrics: list[Row] = [
        (name, [*_values(runs, name), *_differences(runs, name)])
        for name in names
        if not _same([run.metrics.get(name) for run in runs])
    ]
    return params, metrics


def _order(name: str) -> tuple[int, str]:
    rank = next((index for index, start in enumerate(FIRST) if name.startswith(start)), len(FIRST))
    return rank, name


def _values(runs: Sequence[Run], name: str) -> list[str]:
    return [metric_cell(name, run.metrics[name]).text if name in run.metrics else ABSENT for run in runs]


def _differences(runs: Sequence[Run], name: str) -> list[str]:
    first, *others = (run.value(name) for run in runs)
    return [ABSENT if first is None or other is None else points(name, other - first) for other in others]


def _same(values: Sequence[float | None]) -> bool:
    """Whether all values are equal; NaN equals NaN."""
    shown = {"nan" if value is not None and math.isnan(value) else value for value in values}
    return len(shown) == 1


def headings(runs: Sequence[Run]) -> list[str]:
    """A heading per run, by which it is told apart: study and setting, the seed or the id where those are equal."""
    found = [_heading(run) for run in runs]
    for further in (lambda run: "" if run.seed is None else f"seed {run.seed}", lambda run: run.run_id[:8]):
        repeated = {text for text in found if found.count(text) > 1}
        pairs = zip(found, runs, strict=True)
        found = [f"{text} {further(run)}".strip() if text in repeated else text for text, run in pairs]
    return found


def _heading(run: Run) -> str:
    study = run.tag("study")
    return run.label if not study or (run.kind == "study" and run.name == study) else f"{study} {run.label}"


def comparison_tables(runs: Sequence[Run]) -> list[Table]:
    """Tables for a terminal: the runs, and the parameters and metrics in which they differ."""
    from rich.table import Table
    from rich.text import Text

    params, metrics = differing(runs)
    names = headings(runs)
    identities: list[Row] = [
        ("run", [run.run_id[:8] for run in runs]),
        ("name", [run.name for run in runs]),
        ("kind", [run.kind or ABSENT for run in runs]),
        ("state", [run.state for run in runs]),
        ("steps", [ABSENT if run.steps is None else f"{run.steps:,}" for run in runs]),
    ]
    gaps = [f"{name} − {names[0]}" for name in names[1:]]
    tables = []
    for title, columns, rows in (
        ("Runs", names, identities),
        ("Metrics that differ", [*names, *gaps], metrics),
        ("Parameters that differ", names, params),
    ):
        table = Table(title=title, title_justify="left")
        # Folded, not cut: of two names that begin alike both must be told apart.
        table.add_column("", overflow="fold")
        for name in columns:
            # As Text, because Rich interprets a plain string as markup.
            table.add_column(Text(_line(name)), justify="right", overflow="fold")
        for name, texts in rows:
            table.add_row(Text(_line(name)), *(Text(_line(text)) for text in texts))
        tables.append(table)
    return tables


def _line(text: str) -> str:
    """One line of text without control characters."""
    return printable(" ".join(text.split()))
