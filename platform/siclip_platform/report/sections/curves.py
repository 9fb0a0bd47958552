"""Learning curves: several seeds as a band, single runs as lines."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from siclip_platform.report.draw.blocks import Block, Section, Text
from siclip_platform.report.draw.looks import BEST, CONTROL, MANY, TEACHER
from siclip_platform.report.draw.plots import Plot, Series
from siclip_platform.report.draw.values import is_share, metric_cell, metric_label, plural
from siclip_platform.report.judge.settings import settings
from siclip_platform.report.judge.statistics import t_interval
from siclip_platform.report.read.runs import TRAIN_LOSS, Curve, Run, Study

LOOKS = {"best": BEST, "control": CONTROL, "teacher": TEACHER}
MAX_LINES = 40
MAX_BANDS = 12  # more overlap too much to be read


def curves(study: Study) -> Section:
    """The study's metric and the training loss against optimizer steps."""
    drawn = [plot for plot in (_metric(study), _loss(study)) if plot]
    if not drawn:
        return Section("curves", "Learning curves", [Text("No run logged a curve.")])
    blocks: list[Block] = []
    if _has_bands(study):
        text = "Each line is the mean over seeds, with the 95 % t interval at each step as a band."
        blocks.append(Text(text, soft=True))
    return Section("curves", "Learning curves", [*blocks, *drawn])


def band(name: str, found: Sequence[Curve], look: int) -> Series:
    """Mean over seeds, with its t interval if there are several.

    Args:
        name: Name of the series.
        found: One curve per seed.
        look: Number of the series' look.
    """
    # Only steps that all seeds reached: elsewhere the mean would jump as seeds drop out.
    by_step: dict[int, list[float]] = {}
    for curve in found:
        for step, value in curve:
            by_step.setdefault(step, []).append(value)
    steps = sorted(step for step, values in by_step.items() if len(values) == len(found))
    estimates = [t_interval(by_step[step]) for step in steps]
    several = len(found) > 1
    return Series(
        name=name,
        x=[float(step) for step in steps],
        y=[_finite(each.mean) for each in estimates],
        low=[_finite(each.low) for each in estimates] if several else None,
        high=[_finite(each.high) for each in estimates] if several else None,
        look=look,
        group=name,
    )


def line(name: str, curve: Curve, look: int, *, faint: bool = False, legend: bool = True) -> Series:
    """A single run's curve."""
    return Series(
        name=name,
        x=[float(step) for step, _ in curve],
        y=[_finite(value) for _, value in curve],
        look=look,
        faint=faint,
        legend=legend,
        group="trials" if faint else None,
    )


def setting_bands(study: Study, metric: str) -> list[Series]:
    """One band for each of the first `MAX_BANDS` settings that logged the metric."""
    bands: list[Series] = []
    for setting in settings(study):
        found = [run.curves[metric] for run in setting.by_seed.values() if metric in run.curves]
        if found and len(bands) < MAX_BANDS:
            bands.append(band(setting.name, found, len(bands) + 1))
    return bands


def _has_bands(study: Study) -> bool:
    return study.type == "ablation"


def _metric(study: Study) -> Plot | None:
    """The study's metric against optimizer steps; all trials of a search share one legend entry."""
    if _has_bands(study):
        series = setting_bands(study, study.metric)
        ends: list[str] = [
            f"{each.name} ends at {metric_cell(study.metric, each.y[-1]).text}" for each in series if each.y
        ]
    else:
        series = _trial_lines(study)
        # The leading one last, on top of the others.
        roles = [run for run in (study.control, study.best) if run and run.curves.get(study.metric)]
        trials = sum(bool(run.curves.get(study.metric)) for run in study.trials)
        ends = [plural(trials, "trial"), *_ends(roles, study.metric)] if series else []
        series += [line(run.label, run.curves[study.metric], LOOKS[run.kind]) for run in roles]
        ends = ends or _ends(roles, study.metric)
    if not series:
        return None
    label = metric_label(study.metric)
    return Plot(
        key="validation",
        title=f"Learning curves: {label}",
        description=f"{label[:1].upper()}{label[1:]} against optimizer steps: {', '.join(ends)}.",
        x_label="optimizer step",
        y_label=label,
        series=series,
        percent=is_share(study.metric),
    )


def _trial_lines(study: Study) -> list[Series]:
    """Lines of the best `MAX_LINES` trials, and a band for the middle half of the others."""
    drawn = [trial for trial in study.trials if trial.curves.get(study.metric)]
    if study.type == "runs":
        return [line(run.label, run.curves[study.metric], index + 1) for index, run in enumerate(drawn[:MAX_LINES])]
    lines: list[Run] = drawn
    rest: list[Run] = []
    if len(drawn) > MAX_LINES:
        chosen = {run.run_id for run in study.ranked[:MAX_LINES]}
        lines = [trial for trial in drawn if trial.run_id in chosen]
        rest = [trial for trial in drawn if trial.run_id not in chosen]
    series = []
    for index, trial in enumerate(lines):
        each = line(trial.label, trial.curves[study.metric], MANY, faint=True, legend=False)
        series.append(each if index else _first(each, rest))
    return [*series, *([_middle_half(study, rest)] if rest else [])]


def _first(series: Series, rest: Sequence[Run]) -> Series:
    return replace(series, name="leading trials" if rest else "trials", legend=True)


def _middle_half(study: Study, rest: Sequence[Run]) -> Series:
    """Median and quartiles of the trials that are still running at each step."""
    import numpy as np

    by_step: dict[int, list[float]] = {}
    for run in rest:
        for step, value in run.curves[study.metric]:
            if math.isfinite(value):
                by_step.setdefault(step, []).append(value)
    # Quartiles of fewer than four values are interpolated from too little.
    steps = sorted(step for step, values in by_step.items() if len(values) >= 4)
    cuts = [np.quantile(by_step[step], [0.25, 0.5, 0.75]).tolist() for step in steps]
    return Series(
        name=f"median and middle half of {len(rest)} other trials running at that step",
        x=[float(step) for step in steps],
        y=[cut[1] for cut in cuts],
        low=[cut[0] for cut in cuts],
        high=[cut[2] for cut in cuts],
        look=4,
        group="others",
    )


def _loss(study: Study) -> Plot | None:
    if _has_bands(study):
        series = setting_bands(study, TRAIN_LOSS)
        description = f"Training loss of {plural(len(series), 'setting')} against optimizer steps."
    else:
        roles = [run for run in (study.control, study.best) if run and run.curves.get(TRAIN_LOSS)]
        series = [line(run.label, run.curves[TRAIN_LOSS], LOOKS[run.kind]) for run in roles]
        description = f"Training loss against optimizer steps: {', '.join(_ends(roles, TRAIN_LOSS))}."
    if not series:
        return None
    return Plot(
        key="loss",
        title="Training loss",
        description=description,
        x_label="optimizer step",
        y_label="training loss",
        series=series,
    )


def _ends(runs: Iterable[Run], name: str) -> list[str]:
    ends = [(run.label, *run.curves[name][-1]) for run in runs]
    return [f"{label} ends at {metric_cell(name, value).text} after {step:,} steps" for label, step, value in ends]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
