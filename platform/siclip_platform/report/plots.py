"""The report's plots as plotly figures in plain JSON; the page draws them, nothing is fetched."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass
from typing import Any

from siclip_platform.report.query import TRAIN_LOSS, Curve, Run, Study
from siclip_platform.report.tables import metric_label
from siclip_platform.report.values import is_share

BEST, CONTROL, TRIAL, TEACHER = "#3b7de0", "#e06c1f", "#8b919c", "#2a9d74"
COLOURS = {"best": BEST, "control": CONTROL, "trial": TRIAL, "teacher": TEACHER}


@dataclass(frozen=True)
class Plot:
    """``figure``: plotly's data and layout. ``description``: what a reader who cannot see it is told."""

    key: str
    title: str
    description: str
    figure: dict[str, Any]


def plots(study: Study) -> list[Plot]:
    """Every plot for which something was logged."""
    found = (_validation(study), _train_loss(study), _cost(study))
    return [plot for plot in found if plot is not None]


def _text(label: str, limit: int = 40) -> str:
    """A label as text: plotly reads a subset of HTML in every string that it draws."""
    return html.escape(label if len(label) <= limit else label[: limit - 1] + "…", quote=False)


def _layout(x: str, y: str, share: bool = False) -> dict[str, Any]:
    return {
        "height": 380,
        "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "xaxis": {"title": {"text": x}, "automargin": True, "zeroline": False},
        "yaxis": {
            "title": {"text": y},
            "automargin": True,
            "zeroline": False,
            **({"tickformat": ".0%"} if share else {}),
        },
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "hovermode": "closest",
    }


def _line(curve: Curve, name: str, kind: str, share: bool) -> dict[str, Any]:
    value = "%{y:.1%}" if share else "%{y:.4g}"
    return {
        "type": "scatter",
        "mode": "lines+markers" if len(curve) < 60 else "lines",
        "x": [step for step, _ in curve],
        "y": [number if math.isfinite(number) else None for _, number in curve],
        "name": _text(name),
        "line": {"color": COLOURS[kind], "width": 1.2 if kind == "trial" else 2.5},
        "marker": {"size": 4 if kind == "trial" else 6},
        "opacity": 0.65 if kind == "trial" else 1,
        "hovertemplate": f"{_text(name)}<br>step %{{x}}: {value}<extra></extra>",
    }


def _validation(study: Study) -> Plot | None:
    """The study's metric against optimizer steps; the trials share one legend entry."""
    share = is_share(study.metric)
    lines: list[dict[str, Any]] = []
    for trial in study.trials:
        curve = trial.curves.get(study.metric)
        if curve:
            line = _line(curve, trial.label, "trial", share)
            entry = {"name": "trials", "legendgroup": "trials", "showlegend": not lines}
            lines.append(line | entry)
    count = len(lines)
    roles = [run for run in (study.control, study.best) if run and run.curves.get(study.metric)]
    lines += [_line(run.curves[study.metric], run.kind, run.kind, share) for run in roles]
    if not lines:
        return None
    label = metric_label(study.metric)
    trials = f"{count} {'trial' if count == 1 else 'trials'}"
    described = (
        f"{label[:1].upper()}{label[1:]} against optimizer steps: {', '.join([trials, *_ends(roles, study.metric)])}."
    )
    layout = _layout("optimizer step", label, share)
    return Plot("validation", f"Learning curves: {label}", described, {"data": lines, "layout": layout})


def _train_loss(study: Study) -> Plot | None:
    roles = [run for run in (study.control, study.best) if run and run.curves.get(TRAIN_LOSS)]
    if not roles:
        return None
    lines = [_line(run.curves[TRAIN_LOSS], run.kind, run.kind, False) for run in roles]
    described = f"Training loss against optimizer steps: {', '.join(_ends(roles, TRAIN_LOSS))}."
    layout = _layout("optimizer step", "training loss")
    return Plot("loss", "Training loss of best and control", described, {"data": lines, "layout": layout})


def _ends(runs: list[Run], name: str) -> list[str]:
    form = "{:.1%}" if is_share(name) else "{:.4g}"
    ends = [(run.kind, *run.curves[name][-1]) for run in runs]
    return [f"{kind} ends at {form.format(value)} after {step:,} steps" for kind, step, value in ends]


def _cost(study: Study) -> Plot | None:
    """One column a run: wall seconds, the part spent in training steps below."""
    timed = [run for run in study.runs if math.isfinite(run.metrics.get("cost/seconds", math.nan))]
    if not timed:
        return None
    seconds = [run.metrics["cost/seconds"] for run in timed]
    training = [_training_seconds(run) for run in timed]
    total = math.fsum(seconds)
    labels = [_text(run.label, 24) for run in timed]
    positions = list(range(len(timed)))
    shares = [f"{value:.1f} s, {value / total:.1%} of the study" if total else "" for value in seconds]

    def bars(name: str, heights: list[float], opacity: float) -> dict[str, Any]:
        return {
            "type": "bar",
            "name": name,
            "x": positions,
            "y": heights,
            "marker": {"color": [COLOURS[run.kind] for run in timed], "opacity": opacity},
            "customdata": [[_text(run.label), share] for run, share in zip(timed, shares, strict=True)],
            "hovertemplate": "%{customdata[0]}: %{customdata[1]}<br>" + name + ": %{y:.1f} s<extra></extra>",
        }

    rest = [max(0.0, wall - part) for wall, part in zip(seconds, training, strict=True)]
    layout = _layout("", "wall seconds")
    layout |= {"barmode": "stack", "showlegend": False}
    layout["xaxis"] |= {"tickvals": positions, "ticktext": labels, "showgrid": False}
    longest = max(range(len(timed)), key=lambda index: seconds[index])
    described = (
        f"Wall seconds of {len(timed)} runs, strong: training steps, pale: evaluation, data and start. "
        f"The longest is {timed[longest].label} with {seconds[longest]:.1f} s."
    )
    data = [bars("training", training, 1.0), bars("everything else", rest, 0.4)]
    return Plot("cost", "What each run cost", described, {"data": data, "layout": layout})


def _training_seconds(run: Run) -> float:
    value = run.metrics.get("cost/training_seconds", math.nan)
    return min(value, run.metrics["cost/seconds"]) if math.isfinite(value) else 0.0
