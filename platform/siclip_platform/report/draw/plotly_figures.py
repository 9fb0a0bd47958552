"""Plots as plotly figures in plain JSON, which the page draws without network access."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

from siclip_platform.report.draw.looks import band_colour, look
from siclip_platform.report.draw.plots import Heatmap, Plot, Series, thinned

Figure = dict[str, Any]
MARKED_POINTS = 60  # lines with more points are drawn without symbols
MAX_TICKS = 40  # more labels than this overlap
MARK_GROUND = "rgba(127,127,127,0.3)"


def figure(plot: Plot | Heatmap) -> Figure:
    """A plot's ``data`` and ``layout`` for plotly."""
    return _heatmap(plot) if isinstance(plot, Heatmap) else _plot(plot)


def drawn_text(label: str, limit: int = 40) -> str:
    """A label as plain text on one line."""
    # plotly interprets a subset of HTML in every string that it draws.
    label = " ".join(label.split())
    return html.escape(label if len(label) <= limit else label[: limit - 1] + "…", quote=False)


def _layout(x: str, y: str, height: int) -> Figure:
    axis = {"automargin": True, "zeroline": False}
    return {
        "height": height,
        "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
        # Transparent, so that the page's light or dark background shows through.
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "xaxis": {**axis, "title": {"text": drawn_text(x, 80)}},
        "yaxis": {**axis, "exponentformat": "power", "title": {"text": drawn_text(y, 60)}},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "hovermode": "closest",
    }


def _plot(plot: Plot) -> Figure:
    layout = _layout(plot.x_label, plot.y_label, plot.height)
    for name, log, percent, ticks in (
        ("xaxis", plot.x_log, plot.percent_x, plot.x_ticks),
        ("yaxis", plot.y_log, plot.percent, plot.y_ticks),
    ):
        if log:
            layout[name] |= {"type": "log"}
        if percent:
            layout[name] |= {"tickformat": ".1~%" if not log else "~p"}
        if ticks is not None:
            layout[name] |= {
                "tickvals": list(range(len(ticks))),
                "ticktext": [drawn_text(tick, 22) for tick in ticks],
                # plotly would cut symbols at the first and last position in half.
                "range": [-0.6, len(ticks) - 0.4],
                "showgrid": False,
            }
    if plot.zero_line:
        layout[f"{plot.zero_line}axis"] |= {"zeroline": True, "zerolinewidth": 2}
    if plot.y_ticks is not None and len(plot.y_ticks) > MAX_TICKS:
        layout["yaxis"] |= {"showticklabels": False}
    _widen(plot, layout)
    if plot.stacked:
        layout["barmode"] = "stack"
    if plot.marks:
        layout["annotations"] = [
            {
                "x": x,
                "y": y,
                "text": drawn_text(text, 16),
                "showarrow": False,
                "font": {"size": 10},
                "bgcolor": MARK_GROUND,
            }
            for x, y, text in plot.marks
        ]
    legend = any(series.legend for series in plot.series)
    layout["showlegend"] = legend and (len(plot.series) > 1 or not plot.series[0].faint)
    return {"data": [trace for series in plot.series for trace in _traces(plot, thinned(series))], "layout": layout}


def _widen(plot: Plot, layout: Figure) -> None:
    """Widen the y axis around a single value, and use whole numbers on an axis of few counts."""
    values = {value for series in plot.series for value in series.y if value is not None and math.isfinite(value)}
    if len(values) == 1 and plot.y_ticks is None and not plot.y_log and not plot.stacked:
        (value,) = values
        reach = max(0.02, 0.1 * abs(value)) if plot.percent else max(1e-9, 0.1 * abs(value))
        layout["yaxis"] |= {"range": [value - reach, value + reach]}
    if plot.whole_x and max((len(series.x) for series in plot.series), default=0) <= 12:
        layout["xaxis"] |= {"dtick": 1}


def _traces(plot: Plot, series: Series) -> list[Figure]:
    shown, name = look(series.look), drawn_text(series.name)
    base: Figure = {
        "x": list(series.x),
        "y": [_number(value) for value in series.y],
        "name": name,
        "showlegend": series.legend,
        **({"legendgroup": drawn_text(series.group)} if series.group else {}),
        "hovertemplate": _hover(plot, series),
        **({"customdata": [drawn_text(label, 120) for label in series.labels]} if series.labels else {}),
    }
    if series.style == "bars":
        return [base | {"type": "bar", "marker": {"color": shown.colour, "opacity": 0.4 if series.faint else 1}}]
    marker = {"color": shown.colour, "symbol": shown.plotly_symbol, "size": 5 if series.faint else 8}
    if series.style == "points":
        return [base | {"type": "scatter", "mode": "markers", "marker": marker} | _error_bars(series)]
    base |= {
        "type": "scatter",
        "mode": "lines+markers" if len(series.x) < MARKED_POINTS and not series.faint else "lines",
        "line": {
            "color": shown.colour,
            "dash": shown.dash,
            "width": 1.2 if series.faint else 2.5,
            **({"shape": "hv"} if series.style == "steps" else {}),
        },
        "marker": marker,
        "opacity": 0.5 if series.faint else 1,
    }
    return [*_band(series, shown.colour, name), base]


def _band(series: Series, colour: str, name: str) -> list[Figure]:
    if series.low is None or series.high is None:
        return []
    edges = [
        (x, low, high)
        for x, low, high in zip(series.x, series.low, series.high, strict=True)
        if None not in (low, high) and math.isfinite(low or 0.0) and math.isfinite(high or 0.0)
    ]
    # One point has no area to fill.
    if len(edges) < 2:
        return []
    return [
        {
            "type": "scatter",
            "mode": "lines",
            "x": [x for x, _, _ in edges] + [x for x, _, _ in reversed(edges)],
            "y": [high for _, _, high in edges] + [low for _, low, _ in reversed(edges)],
            "fill": "toself",
            "fillcolor": band_colour(colour),
            "line": {"width": 0},
            "hoverinfo": "skip",
            "name": name,
            "legendgroup": drawn_text(series.group or series.name),
            "showlegend": False,
        }
    ]


def _error_bars(series: Series) -> Figure:
    if series.low is None or series.high is None:
        return {}
    centres = series.x if series.sideways else series.y
    up = [_gap(high, value) for high, value in zip(series.high, centres, strict=True)]
    down = [_gap(value, low) for low, value in zip(series.low, centres, strict=True)]
    bars = {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 1.6}
    return {"error_x" if series.sideways else "error_y": bars}


def _gap(one: float | None, other: float | None) -> float:
    """``one`` − ``other``, or 0 if either is unknown: plotly cannot draw an error bar of NaN."""
    gap = (one or 0.0) - (other or 0.0)
    return gap if one is not None and other is not None and math.isfinite(gap) else 0.0


def _hover(plot: Plot, series: Series) -> str:
    y = "%{y:.1%}" if plot.percent else "%{y:.4g}"
    x = "%{x:.1%}" if plot.percent_x else "%{x}"
    label = "%{customdata}<br>" if series.labels else ""
    # plotly replaces %{…} in this template, so names must not contain it.
    title = drawn_text(series.name).replace("%{", "% {")
    axes = drawn_text(plot.x_label, 30).replace("%{", "% {")
    where = f"{axes} {x}: {y}" if axes and plot.x_ticks is None else y
    if plot.y_ticks is not None:
        where = x
    return f"{title}<br>{label}{where}<extra></extra>"


def _number(value: float | None) -> float | None:
    """JSON has neither NaN nor infinity."""
    return value if value is not None and math.isfinite(value) else None


def _heatmap(plot: Heatmap) -> Figure:
    layout = _layout(plot.x_label, plot.y_label, plot.height)
    for name, ticks in (("xaxis", plot.x_ticks), ("yaxis", plot.y_ticks)):
        layout[name] |= {"tickvals": list(range(len(ticks))), "ticktext": _ticks(ticks), "showgrid": False}
    trace = {
        "type": "heatmap",
        "z": [[_number(value) for value in row] for row in plot.values],
        "text": [[drawn_text(cell) for cell in row] for row in plot.cells],
        "texttemplate": "%{text}",
        "colorscale": "Cividis",
        "hoverongaps": False,
        "hovertemplate": "%{text}<extra></extra>",
        "xgap": 2,
        "ygap": 2,
    }
    return {"data": [trace], "layout": layout | {"showlegend": False}}


def _ticks(ticks: Sequence[str]) -> list[str]:
    return [drawn_text(tick, 22) for tick in ticks]
