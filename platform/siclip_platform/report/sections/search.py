"""The course of a search: best value so far, importance of parameters, their interaction, all trials at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from itertools import pairwise

from siclip_platform.report.draw.blocks import Block, Section, Text
from siclip_platform.report.draw.looks import BEST, CONTROL, MANY
from siclip_platform.report.draw.plots import Heatmap, Plot, Series
from siclip_platform.report.draw.values import (
    Cell,
    Table,
    is_share,
    metric_cell,
    metric_label,
    parameter_cell,
    plural,
    short,
)
from siclip_platform.report.judge.importance import MIN_TRIALS, Importance, importance
from siclip_platform.report.judge.numbers import is_log, number, numeric_range
from siclip_platform.report.read.runs import Run, Study
from siclip_platform.report.sections.schedules import is_population

BINS = 4
AXES = 10
MAX_LINES = 240
FEW = 50  # trials; below this the two evaluators often disagree
QUARTERS = ("best quarter", "second quarter", "third quarter", "worst quarter")


def search(study: Study) -> Section | None:
    """History, importance and parallel coordinates; None unless the study is a search."""
    if study.type != "search":
        return None
    scored = [run for run in study.trials if run.value(study.metric) is not None]
    if not scored:
        return Section("search", "Search", [Text("No trial has a value yet.")])
    blocks: list[Block] = [_history(study, scored)]
    if is_population(study):
        text = "Members changed their settings during training, so the importance of a parameter cannot be measured."
        return Section("search", "Search", [*blocks, Text(text)])
    found = importance(study)
    if found is None:
        blocks.append(
            Text(
                f"Parameter importance requires at least {MIN_TRIALS} completed trials with different values and "
                f"settings; the study has {plural(len(study.ranked), 'completed trial')}."
            )
        )
    else:
        blocks += _importance(study, found)
    parallel = _parallel(study)
    return Section("search", "Search", [*blocks, *([parallel] if parallel else [])])


def _history(study: Study, scored: Sequence[Run]) -> Plot:
    """Trials in order of their start, and the best completed value so far."""
    early = datetime.min.replace(tzinfo=UTC)
    ordered = sorted(scored, key=lambda run: run.started or early)
    best: list[float] = []
    for run in ordered:
        value = run.metrics[study.metric]
        before = best[-1] if best else math.nan
        better = run.state == "completed" and (math.isnan(before) or study.gain(value - before) > 0)
        best.append(value if better else before)
    done = [index for index, run in enumerate(ordered) if run.state == "completed"]
    other = [index for index in range(len(ordered)) if index not in set(done)]
    series = [
        Series(
            name=name,
            x=[float(index + 1) for index in indices],
            y=[ordered[index].metrics[study.metric] for index in indices],
            labels=[ordered[index].label for index in indices],
            style="points",
            look=look,
        )
        for name, indices, look in (("completed", done, BEST), ("stopped early or unfinished", other, MANY))
        if indices
    ]
    known = [None if math.isnan(value) else value for value in best]
    numbers = [float(index + 1) for index in range(len(ordered))]
    series.append(Series(name="best so far", x=numbers, y=known, style="steps", look=CONTROL))
    label = metric_label(study.metric)
    last = metric_cell(study.metric, best[-1]).text
    return Plot(
        key="history",
        title="Search history and best so far",
        description=f"{label[:1].upper()}{label[1:]} of {plural(len(ordered), 'trial')} in order of their start; "
        f"the best so far ends at {last}.",
        x_label="trial",
        whole_x=True,
        y_label=label,
        series=series,
        percent=is_share(study.metric),
    )


def _importance(study: Study, found: Importance) -> list[Block]:
    """Importance as plot and table, and the interaction of the two most important parameters."""
    paths = list(found.fanova)
    top = paths[:12][::-1]
    series = [
        Series(
            name=name,
            x=[shares.get(path, 0.0) for path in top],
            y=[index + shift for index in range(len(top))],
            labels=top,
            style="points",
            look=look,
        )
        for name, shares, look, shift in (
            ("fANOVA", found.fanova, BEST, 0.1),
            ("PED-ANOVA", found.ped_anova, CONTROL, -0.1),
        )
    ]
    shares = ", ".join(f"{path} {100 * share:.0f} %" for path, share in list(found.fanova.items())[:4])
    plot = Plot(
        key="importance",
        title="Parameter importance",
        description=f"Share of the variation between {found.trials} completed trials by fANOVA: {shares}.",
        x_label="share of importance",
        y_label="",
        series=series,
        y_ticks=top,
        percent_x=True,
        height=min(700, 170 + 34 * len(top)),
    )
    text = (
        f"Based on {found.trials} completed trials. fANOVA explains the total variation, PED-ANOVA what separates "
        "the best tenth from the rest; where the two disagree, trust neither."
        + (" With so few trials both are rough." if found.trials < FEW else "")
    )
    if found.omitted:
        text += f" Without variation, or without effect in some trials: {', '.join(found.omitted)}."
    table = Table(
        key="importances",
        title="Importance values",
        columns=["parameter", "fANOVA", "PED-ANOVA"],
        rows=[
            [Cell(path, path), _share(found.fanova.get(path)), _share(found.ped_anova.get(path))] for path in paths
        ],
        numeric=[False, True, True],
        sortable=True,
    )
    pair = interaction(study, *paths[:2]) if len(paths) > 1 else None
    return [plot, Text(text, soft=True), table, *([pair] if pair else [])]


def _share(value: float | None) -> Cell:
    return Cell("—") if value is None else Cell(f"{100 * value:.1f} %", value)


def interaction(study: Study, one: str, other: str) -> Heatmap:
    """Mean of the metric over a grid of two parameters, with the number of trials in each cell."""
    runs = [run for run in study.ranked if one in run.params and other in run.params]
    (names_x, column_of), (names_y, row_of) = _bins(runs, one), _bins(runs, other)
    cells: dict[tuple[int, int], list[float]] = {}
    for run in runs:
        cells.setdefault((row_of(run), column_of(run)), []).append(run.metrics[study.metric])
    grid = [[cells.get((row, column), []) for column in range(len(names_x))] for row in range(len(names_y))]
    means = [[math.fsum(found) / len(found) if found else None for found in row] for row in grid]
    texts = [
        [
            f"{metric_cell(study.metric, mean).text} (n={len(found)})" if found else ""
            for mean, found in zip(*rows, strict=True)
        ]
        for rows in zip(means, grid, strict=True)
    ]
    return Heatmap(
        key="interaction",
        title="The two most important parameters together",
        description=f"Mean {metric_label(study.metric)} of completed trials by {one} and {other}, and their number.",
        x_label=one,
        y_label=other,
        x_ticks=names_x,
        y_ticks=names_y,
        values=means,
        cells=texts,
    )


def _bins(runs: Sequence[Run], path: str) -> tuple[list[str], Callable[[Run], int]]:
    """Names of a parameter's bins, and a function from run to bin.

    The bins are the values themselves, or for a number with more than five values four equal parts of its range.
    """
    texts = list(dict.fromkeys(run.params[path] for run in runs))
    bounds = numeric_range(runs, path)
    if bounds is None or len(texts) <= BINS + 1:
        ordered = sorted(texts, key=lambda text: (number(text) is None, number(text) or 0.0, text))
        return [parameter_cell(text).text for text in ordered], lambda run: ordered.index(run.params[path])
    low, high = bounds
    scale: Callable[[float], float] = math.log if is_log(low, high) else float
    width = (scale(high) - scale(low)) / BINS
    back: Callable[[float], float] = math.exp if is_log(low, high) else float
    edges = [back(scale(low) + index * width) for index in range(BINS + 1)]

    def bin_of(run: Run) -> int:
        value = number(run.params[path]) or 0.0
        return min(BINS - 1, int((scale(value) - scale(low)) / width))

    return [f"{short(a)} – {short(b)}" for a, b in pairwise(edges)], bin_of


def _parallel(study: Study) -> Plot | None:
    """Parallel coordinates: one line per completed trial, with colours and dashes by quarter."""
    runs = study.ranked
    paths = [path for path in study.searched if len({run.params.get(path) for run in runs}) > 1][:AXES]
    if len(runs) < 4 or not paths:
        return None
    stride = max(1.0, len(runs) / MAX_LINES)
    drawn = [runs[int(index * stride)] for index in range(int(len(runs) / stride))]
    scales = [_scale(runs, path) for path in paths]
    series = []
    # The best quarter is drawn last, on top of the others.
    for quarter, name in reversed(list(enumerate(QUARTERS))):
        members = drawn[quarter * len(drawn) // 4 : (quarter + 1) * len(drawn) // 4]
        x: list[float | None] = []
        y: list[float | None] = []
        for run in members:
            x += [*map(float, range(len(paths))), None]
            y += [*(scale(run) for scale, _ in scales), None]
        look = (BEST, CONTROL, 4, MANY)[quarter]
        series.append(Series(name=name, x=x, y=y, look=look, faint=quarter > 0))
    marks = [(float(axis), height, text) for axis, (_, ends) in enumerate(scales) for height, text in ends]
    return Plot(
        key="parallel",
        title="All searched parameters of completed trials",
        description=f"Parallel coordinates of {plural(len(drawn), 'completed trial')} over {', '.join(paths)}, in "
        f"quarters by {metric_label(study.metric)}; the lowest value of each axis is at the bottom.",
        x_label="",
        y_label="lowest to highest value tried",
        series=series,
        x_ticks=paths,
        marks=marks,
        height=440,
    )


def _scale(runs: Sequence[Run], path: str) -> tuple[Callable[[Run], float | None], list[tuple[float, str]]]:
    """A function from run to height on a parameter's axis (0 to 1), and the axis labels (height, text)."""
    bounds = numeric_range(runs, path)
    if bounds is None or bounds[0] == bounds[1]:
        texts = sorted({run.params.get(path, "—") for run in runs})
        heights = {text: index / max(1, len(texts) - 1) for index, text in enumerate(texts)}
        ends = [(height, text) for text, height in heights.items()] if len(texts) <= 8 else []
        return lambda run: heights[run.params.get(path, "—")], ends
    low, high = bounds
    scale: Callable[[float], float] = math.log if is_log(low, high) else float

    def height(run: Run) -> float | None:
        value = number(run.params.get(path))
        return None if value is None else (scale(value) - scale(low)) / (scale(high) - scale(low))

    return height, [(-0.06, short(low)), (1.06, short(high))]
