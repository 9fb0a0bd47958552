"""Quality against parameters, latency and wall time, each with its Pareto front."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from siclip_platform.report.draw.blocks import Block, Section, Text
from siclip_platform.report.draw.looks import BEST, CONTROL
from siclip_platform.report.draw.plots import Plot, Series, Style
from siclip_platform.report.draw.values import is_share, metric_cell, metric_label, short
from siclip_platform.report.judge.pareto import pareto_front
from siclip_platform.report.judge.settings import settings
from siclip_platform.report.judge.statistics import t_interval
from siclip_platform.report.read.runs import Run, Study


@dataclass(frozen=True)
class Point:
    """A setting with completed runs.

    Attributes:
        quality: Mean of the study's metric.
        runs: The completed runs, over which its costs are averaged.
    """

    name: str
    quality: float
    runs: Sequence[Run]

    def cost(self, of: Callable[[Run], float | None]) -> float | None:
        """Mean of a cost over the runs that recorded it; None if none did."""
        found = [value for run in self.runs if (value := of(run)) is not None]
        return t_interval(found).mean if found else None


def tradeoff(study: Study) -> Section | None:
    """One plot per recorded cost; None without a completed run."""
    points = quality_points(study)
    if not points:
        return None
    plots: list[Block] = [
        plot for key, label, of in _costs(points) if (plot := _plot(study, points, key, label, of)) is not None
    ]
    if not plots:
        plots = [Text("Fewer than two completed runs have a recorded cost, or all cost the same.")]
    text = (
        "Connected points form the Pareto front: no other setting is both cheaper and better. Noise between seeds "
        "shifts the front."
    )
    return Section("tradeoff", "Quality against cost", [Text(text, soft=True), *plots])


def quality_points(study: Study) -> list[Point]:
    """One point per setting that has a value of the study's metric."""
    points = []
    for setting in settings(study):
        values = setting.values(study.metric)
        if values:
            runs = [run for run in setting.by_seed.values() if run.state == "completed"]
            points.append(Point(setting.name, t_interval(list(values.values())).mean, runs))
    return points


def parameters(run: Run) -> float | None:
    """Parameters of both towers, or the total if the towers are not recorded."""
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
    # The front in order of cost is drawn as a line; all other points as symbols.
    on_front = set(front)
    rest = [index for index in range(len(known)) if index not in on_front]
    groups: list[tuple[str, list[int], Style, int, bool]] = [
        ("dominated", rest, "points", BEST, len(rest) > 60),
        ("Pareto front", front, "line", CONTROL, False),
    ]
    series = [
        Series(
            name=name,
            x=[known[index][1] for index in indices],
            y=[known[index][0].quality for index in indices],
            labels=[known[index][0].name for index in indices],
            style=style,
            look=look,
            faint=faint,
        )
        for name, indices, style, look, faint in groups
        if indices
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
