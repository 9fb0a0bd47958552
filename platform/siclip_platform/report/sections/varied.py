"""The settings of a study along the number in which they differ."""

from __future__ import annotations

import math
from collections.abc import Sequence

from siclip_platform.report.draw.looks import BEST
from siclip_platform.report.draw.plots import Plot, Series
from siclip_platform.report.draw.values import is_share, metric_cell, metric_label, short
from siclip_platform.report.judge.numbers import is_log, number
from siclip_platform.report.judge.settings import Setting, settings
from siclip_platform.report.judge.statistics import t_interval
from siclip_platform.report.read.runs import Study


def varied_number(study: Study, preferred: Sequence[str]) -> str | None:
    """The numeric parameter that the settings vary: a preferred one, else the only one; None otherwise."""
    candidates = settings(study)

    def numeric(path: str) -> bool:
        values = [number(setting.trial.params.get(path)) for setting in candidates]
        return None not in values and len(set(values)) > 1

    found = next((path for path in preferred if numeric(path)), None)
    if found:
        return found
    # Several varying numbers cannot be separated by one curve.
    paths = {path for setting in candidates for path in setting.trial.params if path != "training.seed"}
    varying = [path for path in sorted(paths) if numeric(path) and not path.startswith("study.")]
    return varying[0] if len(varying) == 1 else None


def positions(study: Study, path: str) -> list[tuple[float, Setting]]:
    """(value of the parameter, setting), in order of the value."""
    pairs = [(number(setting.trial.params.get(path)), setting) for setting in settings(study)]
    return sorted(((x, setting) for x, setting in pairs if x is not None), key=lambda pair: pair[0])


def against_number(study: Study, path: str, key: str) -> Plot:
    """Plot the metric's mean over seeds, with its interval, against a numeric parameter."""
    found = [(x, t_interval(list(setting.values(study.metric).values()))) for x, setting in positions(study, path)]
    known = [(x, each) for x, each in found if each.count]
    low, high = (min(x for x, _ in known), max(x for x, _ in known)) if known else (0.0, 0.0)
    shown = ", ".join(f"{short(x)}: {metric_cell(study.metric, each.mean).text}" for x, each in known)
    return Plot(
        key=key,
        title=f"{metric_label(study.metric)} against {path}",
        description=f"Mean over seeds with its 95 % interval. {shown or 'No completed run.'}",
        x_label=path,
        y_label=metric_label(study.metric),
        x_log=is_log(low, high),
        percent=is_share(study.metric),
        series=[
            Series(
                name="mean and 95 % interval",
                x=[x for x, _ in known],
                y=[each.mean for _, each in known],
                low=[each.low if math.isfinite(each.low) else None for _, each in known],
                high=[each.high if math.isfinite(each.high) else None for _, each in known],
                style="points",
                look=BEST,
            )
        ],
    )
