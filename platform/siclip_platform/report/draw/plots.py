"""Plots as data: plotly draws them in the page, matplotlib for the Markdown twin; both are also written as CSV."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

MAX_POINTS = 400  # a plot is about 800 pixels wide, so more points would only make the page larger
Style = Literal["line", "points", "bars", "steps"]
Value = float | int | str | None


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line, set of points or row of bars.

    Attributes:
        name: Name in the legend.
        x: Horizontal positions.
        y: Values; None breaks a line.
        low: Lower ends of an interval of y: a band around a line, error bars at points.
        high: Upper ends of the interval.
        look: Number of a colour, dash and symbol that no other series of the plot has.
        labels: A name for each point.
        group: Series with the same group share a legend entry.
        legend: Whether the series has a legend entry.
        faint: Drawn thin and translucent, for one of many.
        sideways: Whether the interval is of x.
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
    """A plot of one or more series.

    Attributes:
        key: Unique name within the report, used for HTML ids and file names.
        description: The plot in words: its caption, also for readers who cannot see it.
        percent: Whether y values are shares, shown as percentages.
        percent_x: The same for x.
        x_ticks: Names of the positions 0, 1, … on the x axis.
        y_ticks: The same on the y axis.
        zero_line: Axis whose zero is drawn as a line.
        stacked: Whether bars are stacked.
        whole_x: Whether x is a count.
        marks: Texts in the plot: (x, y, text).
        height: In pixels.
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
        """Column names, then one row per point."""
        yield ["series", "label", self.x_label or "x", self.y_label or "y", "low", "high"]
        # All points: only drawings are thinned.
        for series in self.series:
            for index, (x, y) in enumerate(zip(series.x, series.y, strict=True)):
                label = series.labels[index] if series.labels else _tick(self, x, y)
                low = series.low[index] if series.low else None
                high = series.high[index] if series.high else None
                yield [series.name, label, x, y, low, high]


@dataclass(frozen=True, kw_only=True)
class Heatmap:
    """A grid of coloured cells.

    Attributes:
        values: ``values[row][column]``; None where nothing was measured.
        cells: The text in each cell.
    """

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
        """Column names, then one row per cell."""
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
    """Reduce a series to at most ``limit`` evenly spaced points, including the first and the last."""
    count = len(series.x)
    if count <= limit:
        return series
    kept = sorted({round(index * (count - 1) / (limit - 1)) for index in range(limit)})

    def pick(values: Sequence | None) -> list | None:
        return [values[index] for index in kept] if values is not None else None

    return replace(
        series,
        x=pick(series.x) or [],
        y=pick(series.y) or [],
        low=pick(series.low),
        high=pick(series.high),
        labels=pick(series.labels),
    )
