"""Quality against parameters, latency and cost, with the Pareto front of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from siclip_platform.report.draw.blocks import Block, Section, Text
from siclip_platform.report.draw.looks import BEST, CONTROL
from siclip_platform.report.draw.plots import Plot, Series
from siclip_platform.report.draw.values import is_share, metric_cell, metric_label, short
from siclip_platform.report.judge.pareto import pareto_front
from siclip_platform.report.judge.settings import settings
from siclip_platform.report.judge.statistics import t_interval
from siclip_platform.report.read.runs import Run, Study


@dataclass(frozen=True)
class Point:
    """A completed trial or setting: its name, the mean of the metric, and a run that its costs are read from."""

    name: str
    quality: float
    runs: Sequence[Run]

    def cost(self, of: Callable[[Run], float | None]) -> float | None:
        found = [value for run in self.runs if (value := of(run)) is not None]
        return t_interval(found).mean if found else None


def tradeoff(study: Study) -> Section | None:
    points = quality_points(study)
    if not points:
        return None
    plots: list[Block] = [
        plot for key, label, of in _costs(points) if (plot := _plot(study, points, key, label, of)) is not None
    ]
    if not plots:
        plots = [Text("Fewer than two completed runs have a recorded cost, or all cost the same.")]
    words = "Joined points are on the Pareto front: nothing is both cheaper and better. Noise between seeds moves it."
    return Section("tradeoff", "Quality against cost", [Text(words, soft=True), *plots])


def quality_points(study: Study) -> list[Point]:
    made = []
    for setting in settings(study):
        values = setting.values(study.metric)
        if values:
            runs = [run for run in setting.by_seed.values() if run.state == "completed"]
            made.append(Point(setting.name, t_interval(list(values.values())).mean, runs))
    return made


def parameters(run: Run) -> float | None:
    """Of both towers."""
    image, text = run.value("cost/parameters_image"), run.value("cost/parameters_text")
    return image + text if image is not None and text is not None else run.value("cost/parameters")


def _costs(points: Sequence[Point]) -> list[tuple[str, str, Callable[[Run], float | None]]]:
    logged = sorted({name for point in points for run in point.runs for name in run.metrics if "latency" in name})

    def reader(name: str) -> Callable[[Run], float | None]:
        return lambda run: run.value(name)

    return [
        ("parameters", "parameters of both towers", parameters),
        *((f"latency-{index}", metric_label(name), reader(name)) for index, name in enumerate(logged[:4])),
        ("seconds", "wall seconds", reader("cost/seconds")),
    ]


def _plot(
    study: Study, points: Sequence[Point], key: str, label: str, of: Callable[[Run], float | None]
) -> Plot | None:
    known = [(point, cost) for point in points if (cost := point.cost(of)) is not None]
    if len(known) < 2 or len({cost for _, cost in known}) < 2:
        return None
    front = pareto_front([(cost, study.gain(point.quality)) for point, cost in known])
    shown = [(known[index][0], short(known[index][1])) for index in front[:6]]
    names = ", ".join(
        f"{point.name} ({cost}, {metric_cell(study.metric, point.quality).text})" for point, cost in shown
    )
    on_front = set(front)
    rest = [index for index in range(len(known)) if index not in on_front]
    series = [
        Series(
            name=name,
            x=[known[index][1] for index in places],
            y=[known[index][0].quality for index in places],
            labels=[known[index][0].name for index in places],
            style=style,  # type: ignore[arg-type]
            look=look,
            faint=faint,
        )
        for name, places, style, look, faint in (
            ("beaten by another", rest, "points", BEST, len(rest) > 60),
            ("Pareto front", front, "line", CONTROL, False),
        )
        if places
    ]
    return Plot(
        key=f"pareto-{key}",
        title=f"{metric_label(study.metric)} against {label}",
        description=f"On the Pareto front, from the cheapest: {names}.",
        x_label=label,
        y_label=metric_label(study.metric),
        series=series,
        percent=is_share(study.metric),
    )
