"""Plots as data: drawn by plotly in the page, by matplotlib beside the Markdown twin, and written as CSV."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

MAX_POINTS = 400
Style = Literal["line", "points", "bars", "steps"]
Value = float | int | str | None


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line, cloud or row of bars. None in ``y`` breaks a line.

    ``low``, ``high``: an interval of y (of x with ``sideways``), a band around a line, bars at points.
    ``look``: a number for a colour, dash and symbol that other series of the plot do not have. ``labels``: a name for
    each point. ``group``: series with one group share a legend entry. ``faint``: one of many.
    """

    name: str
    x: Sequence[float | None]
    y: Sequence[float | None]
    low: Sequence[float | None] | None = None
    high: Sequence[float | None] | None = None
    style: Style = "line"
    look: int = 0
    labels: Sequence[str] | None = None
    group: str | None = None
    legend: bool = True
    faint: bool = False
    sideways: bool = False


@dataclass(frozen=True, kw_only=True)
class Plot:
    """``description``: what a reader who cannot see it is told. ``percent``: y (x with ``percent_x``) are shares.

    ``x_ticks``, ``y_ticks``: names of the positions 0, 1, … ``marks``: (x, y, text) written into the plot.
    """

    key: str
    title: str
    description: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    x_log: bool = False
    y_log: bool = False
    percent: bool = False
    percent_x: bool = False
    x_ticks: Sequence[str] | None = None
    y_ticks: Sequence[str] | None = None
    zero_line: Literal["x", "y"] | None = None
    stacked: bool = False
    whole_x: bool = False
    marks: Sequence[tuple[float, float, str]] = ()
    height: int = 380

    def rows(self) -> Iterator[list[Value]]:
        """Every point, with a head."""
        yield ["series", "label", self.x_label or "x", self.y_label or "y", "low", "high"]
        for series in self.series:
            for index, (x, y) in enumerate(zip(series.x, series.y, strict=True)):
                label = series.labels[index] if series.labels else _tick(self, x, y)
                low = series.low[index] if series.low else None
                high = series.high[index] if series.high else None
                yield [series.name, label, x, y, low, high]


@dataclass(frozen=True, kw_only=True)
class Heatmap:
    """``values[row][column]``, None where nothing was measured; ``cells`` are the texts in them."""

    key: str
    title: str
    description: str
    x_label: str
    y_label: str
    x_ticks: Sequence[str]
    y_ticks: Sequence[str]
    values: Sequence[Sequence[float | None]]
    cells: Sequence[Sequence[str]]
    height: int = 380

    def rows(self) -> Iterator[list[Value]]:
        """Every cell, with a head."""
        yield [self.x_label, self.y_label, "value", "shown"]
        for name, values, cells in zip(self.y_ticks, self.values, self.cells, strict=True):
            for tick, value, cell in zip(self.x_ticks, values, cells, strict=True):
                yield [tick, name, value, cell]


def _tick(plot: Plot, x: float | None, y: float | None) -> str:
    for ticks, position in ((plot.x_ticks, x), (plot.y_ticks, y)):
        if ticks and position is not None and position == int(position) and 0 <= position < len(ticks):
            return ticks[int(position)]
    return ""


def thinned(series: Series, limit: int = MAX_POINTS) -> Series:
    """At most ``limit`` points of a long line: the first, the last, and evenly between them."""
    count = len(series.x)
    if count <= limit:
        return series
    kept = sorted({round(index * (count - 1) / (limit - 1)) for index in range(limit)})

    def pick(values: Sequence | None) -> list | None:
        return [values[index] for index in kept] if values is not None else None

    return replace(
        series, x=pick(series.x) or [], y=pick(series.y) or [], low=pick(series.low), high=pick(series.high),
        labels=pick(series.labels),
    )  # fmt: skip
