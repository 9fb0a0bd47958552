"""Compute: time, bytes and memory of a study."""

from __future__ import annotations

import math

from siclip_platform.report.draw.blocks import Block, Section
from siclip_platform.report.draw.looks import BEST, MANY
from siclip_platform.report.draw.plots import Plot, Series
from siclip_platform.report.draw.values import (
    MISSING,
    Cell,
    Table,
    byte_size,
    count_cell,
    duration,
    plural,
    seconds_cell,
)
from siclip_platform.report.read.runs import Run, Study
from siclip_platform.report.sections.cost import total_seconds
from siclip_platform.report.sections.leaderboard import share_cell

KINDS = ("teacher", "trial", "seed", "best", "control", "confirm")
LABELS = {"trial": "trials", "seed": "seed runs", "confirm": "fresh seeds", "best": "leading"}
DEVICE = "cost/device_seconds"
DEVICES = {"cpu": "CPU", "cuda": "GPU"}
DATASET = "cost/dataset_bytes"
BYTES = {
    DATASET: "dataset on disk",
    "cost/checkpoint_bytes": "last checkpoint of each run",
    "cost/artifact_bytes": "files logged to MLflow",
}
MAX_BARS = 60  # more bars than this have no room for their labels


def compute(study: Study) -> Section:
    """Totals, costs by kind of run, and the cost of each run."""
    plot = _bars(study)
    blocks: list[Block] = [_totals(study), _by_kind(study), *([plot] if plot else [])]
    return Section("compute", "Compute", blocks)


def _totals(study: Study) -> Table:
    """Wall and device time, trials per hour, memory and bytes, as far as they are recorded."""
    runs = study.runs
    training = math.fsum(value for run in runs if (value := run.value("cost/training_seconds")) is not None)
    ends = [run.ended for run in runs if run.ended]
    starts = [run.started for run in runs if run.started]
    span = (max(ends) - min(starts)).total_seconds() if ends and starts else 0.0
    # Pruned trials count, because the search has decided about them.
    ended = [run for run in study.trials if run.state in ("completed", "pruned")]
    rows = [
        [Cell("wall time of all runs"), _seconds(total_seconds(runs))],
        [Cell("of this in training steps"), _seconds(training)],
        *_device_time(runs),
        [Cell("from first start to last end"), _seconds(span)],
        [Cell("trials per hour, completed or pruned"), _rate(len(ended), span)],
        [Cell("peak memory of any run"), _peak(runs)],
    ]
    rows += _bytes((study.run, *runs))
    return Table(
        key="totals",
        title="Totals",
        columns=["quantity", "value"],
        rows=rows,
        numeric=[False, True],
        note="Device time covers training steps only, summed over devices, without evaluation and startup.",
    )


def _device_time(runs: tuple[Run, ...]) -> list[list[Cell]]:
    """One row per type of device, from the metrics ``cost/device_seconds_TYPE``."""
    found: dict[str, list[float]] = {}
    for run in runs:
        for name in run.metrics:
            value = run.value(name)
            if name.startswith(DEVICE) and value is not None:
                found.setdefault(name.removeprefix(DEVICE).strip("_"), []).append(value)
    if not found:
        return [[Cell("device time"), Cell(MISSING)]]
    return [
        [
            Cell(f"device time, {DEVICES.get(device, device) or 'all devices'}, {plural(len(values), 'run')}"),
            _seconds(math.fsum(values)),
        ]
        for device, values in sorted(found.items())
    ]


def _bytes(runs: tuple[Run, ...]) -> list[list[Cell]]:
    """Bytes summed over runs. Of dataset sizes the largest, because all runs of a study read the same dataset."""
    # The known quantities come first, also if no run recorded them.
    rows = [[Cell(label), Cell(MISSING)] for label in BYTES.values()]
    positions = {name: index for index, name in enumerate(BYTES)}
    for name in sorted(
        {name for run in runs for name in run.metrics if name.startswith("cost/") and "bytes" in name}
    ):
        values = [value for run in runs if (value := run.value(name)) is not None]
        if not values:
            continue
        amount = max(values) if name == DATASET else math.fsum(values)
        counted = "" if name == DATASET else f", {plural(len(values), 'run')}"
        row = [
            Cell(f"{BYTES.get(name) or name.removeprefix('cost/').replace('_', ' ')}{counted}"),
            Cell(byte_size(amount), amount),
        ]
        if name in positions:
            rows[positions[name]] = row
        else:
            rows.append(row)
    return rows


def _seconds(value: float) -> Cell:
    return Cell(duration(value), value) if value > 0 else Cell(MISSING)


def _rate(count: int, span: float) -> Cell:
    return Cell(f"{3600 * count / span:.1f}", 3600 * count / span) if span > 0 and count else Cell(MISSING)


def _peak(runs: tuple[Run, ...]) -> Cell:
    found = [value for run in runs if (value := run.value("cost/peak_memory_mib")) is not None]
    return Cell(f"{max(found):,.0f} MiB", max(found)) if found else Cell(MISSING)


def _by_kind(study: Study) -> Table:
    """Wall time by kind of run and its share of the study's total."""
    total = total_seconds(study.runs)
    rows = []
    kinds = dict.fromkeys((*KINDS, *(run.kind for run in study.runs)))
    for kind in kinds:
        runs = tuple(run for run in study.runs if run.kind == kind)
        if not runs:
            continue
        timed = tuple(run for run in runs if run.value("cost/seconds") is not None)
        seconds = total_seconds(timed) if timed else None
        cells = (count_cell(len(runs)), count_cell(len(timed)), seconds_cell(seconds))
        rows.append([Cell(LABELS.get(kind, kind or "other")), *cells, share_cell(seconds, total)])
    everything = sum(int(row[2].value or 0) for row in rows)
    counts = (count_cell(len(study.runs)), count_cell(everything), seconds_cell(total), share_cell(total, total))
    rows.append([Cell("total"), *counts])
    columns = ["runs", "number", "with a recorded cost", "wall time", "share"]
    title = "Cost by kind of run"
    return Table(key="costs", title=title, columns=columns, rows=rows, numeric=[False, *[True] * 4])


def _bars(study: Study) -> Plot | None:
    """Wall seconds, one bar per run with training steps at the bottom; of many runs the longest."""
    timed = [run for run in study.runs if run.value("cost/seconds") is not None]
    if not timed:
        return None
    if len(timed) > MAX_BARS:
        timed = sorted(timed, key=lambda run: -run.metrics["cost/seconds"])[:MAX_BARS]
    seconds = [run.metrics["cost/seconds"] for run in timed]
    # Clipped to wall time, so that no bar is longer than its run.
    training = [
        min(run.value("cost/training_seconds") or 0.0, wall) for run, wall in zip(timed, seconds, strict=True)
    ]
    rest = [max(0.0, wall - part) for wall, part in zip(seconds, training, strict=True)]
    total = total_seconds(study.runs)
    positions = [float(index) for index in range(len(timed))]
    labels = [
        f"{run.label}: {wall:.1f} s" + (f", {wall / total:.1%} of the study" if total else "")
        for run, wall in zip(timed, seconds, strict=True)
    ]
    longest = max(range(len(timed)), key=seconds.__getitem__)
    series = [
        Series(name=name, x=positions, y=heights, labels=labels, style="bars", look=look, faint=faint)
        for name, heights, look, faint in (
            ("training", training, BEST, False),
            ("everything else", rest, MANY, False),
        )
    ]
    return Plot(
        key="cost",
        title="Cost of each run" if len(timed) == len(study.runs) else f"The {plural(len(timed), 'longest run')}",
        description=f"Wall seconds of {plural(len(timed), 'run')}: training steps at the bottom, evaluation, data "
        f"and startup above. The longest is {timed[longest].label} with {seconds[longest]:.1f} s.",
        x_label="",
        y_label="wall seconds",
        series=series,
        x_ticks=[run.label for run in timed],
        stacked=True,
    )
