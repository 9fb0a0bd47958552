"""Draw plots as PNG files with matplotlib, for the Markdown twin."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from siclip_platform.report.draw.looks import look
from siclip_platform.report.draw.plots import Heatmap, Plot, Series, thinned

DPI = 110


def draw_png(plot: Plot | Heatmap, path: Path) -> None:
    """Write a plot to ``path``; labels are drawn as plain text, not as mathematics."""
    # matplotlib's object interface: pyplot would keep every figure in a global list and choose a GUI backend.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, plot.height / 100), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(_text(plot.x_label, 80))
    axes.set_ylabel(_text(plot.y_label, 60))
    if isinstance(plot, Heatmap):
        _heatmap(figure, axes, plot)
    else:
        _plot(axes, plot)
    FigureCanvasAgg(figure).print_png(path)


def _text(label: str, limit: int = 40) -> str:
    """One line of plain text: no mathematics and no characters that the font lacks."""
    line = " ".join(label.split())
    line = line if len(line) <= limit else line[: limit - 1] + "…"
    return "".join(_drawable(letter) for letter in line).replace("$", r"\$")


def _drawable(letter: str) -> str:
    return letter if ord(letter) in _glyphs() else "□"


@cache
def _glyphs() -> frozenset[int]:
    """Code points in matplotlib's own font; it warns on each character that is not among them."""
    from matplotlib import font_manager

    return frozenset(font_manager.get_font(font_manager.findfont("DejaVu Sans")).get_charmap())


def _plot(axes: Any, plot: Plot) -> None:
    from matplotlib.ticker import PercentFormatter

    bottoms: dict[float, float] = {}
    for series in plot.series:
        _series(axes, thinned(series), bottoms if plot.stacked else None)
    for axis, scale, percent, ticks in (
        (axes.xaxis, plot.x_log, plot.percent_x, plot.x_ticks),
        (axes.yaxis, plot.y_log, plot.percent, plot.y_ticks),
    ):
        if scale:
            (axes.set_xscale if axis is axes.xaxis else axes.set_yscale)("log")
        if percent:
            axis.set_major_formatter(PercentFormatter(1.0))
        if ticks is not None:
            turned = {"rotation": 30, "ha": "right"} if axis is axes.xaxis and len(ticks) > 4 else {}
            axis.set_ticks(range(len(ticks)), [_text(tick, 22) for tick in ticks], **turned)
    if plot.zero_line:
        (axes.axvline if plot.zero_line == "x" else axes.axhline)(0, color="#59616c", linewidth=1)
    for x, y, text in plot.marks:
        axes.text(x, y, _text(text, 16), fontsize=7, ha="center")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if len(axes.get_legend_handles_labels()[1]) > 1:
        axes.legend(fontsize=8, frameon=False, ncols=2)


def _series(axes: Any, series: Series, bottoms: dict[float, float] | None) -> None:
    shown = look(series.look)
    y = [math.nan if value is None else value for value in series.y]
    x = [math.nan if value is None else value for value in series.x]
    label = _text(series.name) if series.legend else None
    style: dict[str, Any] = {"color": shown.colour, "label": label}
    if series.style == "bars":
        base = [(bottoms or {}).get(position, 0.0) for position in x]
        axes.bar(x, y, bottom=base, alpha=0.4 if series.faint else 1, **style)
        if bottoms is not None:
            bottoms.update({position: low + height for position, low, height in zip(x, base, y, strict=True)})
    elif series.style == "points":
        axes.plot(x, y, shown.matplotlib_symbol, markersize=3 if series.faint else 6, **style)
        if series.low is not None and series.high is not None:
            _error_bars(axes, series, x, y, shown.colour)
    else:
        alpha, width = (0.4, 0.8) if series.faint else (1, 2)
        draw = "steps-post" if series.style == "steps" else "default"
        line = dict(style, linestyle=shown.matplotlib_dash, alpha=alpha, linewidth=width, drawstyle=draw)
        # A line through one point is invisible.
        axes.plot(x, y, **line, marker=shown.matplotlib_symbol if len(x) == 1 else None)
        if series.low is not None and series.high is not None:
            axes.fill_between(x, _numbers(series.low), _numbers(series.high), color=shown.colour, alpha=0.16, lw=0)


def _error_bars(axes: Any, series: Series, x: list[float], y: list[float], colour: str) -> None:
    centres = x if series.sideways else y
    low, high = _numbers(series.low or []), _numbers(series.high or [])
    down = [max(0.0, v - e) if math.isfinite(e) else 0.0 for v, e in zip(centres, low, strict=True)]
    up = [max(0.0, e - v) if math.isfinite(e) else 0.0 for v, e in zip(centres, high, strict=True)]
    axes.errorbar(x, y, **{"xerr" if series.sideways else "yerr": [down, up]}, fmt="none", ecolor=colour)


def _numbers(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]


def _heatmap(figure: Any, axes: Any, plot: Heatmap) -> None:
    values = [_numbers(row) for row in plot.values]
    image = axes.imshow(values, cmap="cividis", aspect="auto", origin="lower")
    axes.set_xticks(range(len(plot.x_ticks)), [_text(tick, 22) for tick in plot.x_ticks], rotation=30, ha="right")
    axes.set_yticks(range(len(plot.y_ticks)), [_text(tick, 22) for tick in plot.y_ticks])
    known = [value for row in values for value in row if math.isfinite(value)]
    middle = (min(known) + max(known)) / 2 if known else 0.0
    for row, cells in enumerate(plot.cells):
        for column, cell in enumerate(cells):
            # Cividis runs from dark to light.
            colour = "white" if values[row][column] < middle else "black"
            axes.text(column, row, _text(cell), ha="center", va="center", fontsize=8, color=colour)
    figure.colorbar(image, ax=axes)
