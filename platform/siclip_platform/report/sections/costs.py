"""What did not end well, and what everything cost."""

from __future__ import annotations

import math
from collections import Counter

from siclip_platform.report.draw.blocks import Block, Section, Text
from siclip_platform.report.draw.looks import BEST, MANY
from siclip_platform.report.draw.plots import Plot, Series
from siclip_platform.report.draw.values import (
    MISSING,
    Cell,
    Table,
    byte_size,
    count_cell,
    duration,
    metric_label,
    plural,
    seconds_cell,
    text_cell,
)
from siclip_platform.report.read.runs import Run, Study
from siclip_platform.report.read.store import json_list
from siclip_platform.report.sections.leaderboard import share_cell
from siclip_platform.report.sections.price import total_seconds
from siclip_platform.report.sections.schedules import is_population

KINDS = ("teacher", "trial", "seed", "best", "control", "confirm")
LABELS = {"trial": "trials", "seed": "trials' seeds", "confirm": "fresh seeds"}
DEVICE = "cost/device_seconds"
DEVICES = {"cpu": "CPU", "cuda": "GPU"}
DATASET = "cost/dataset_bytes"
BYTES = {
    DATASET: "dataset on the disk",
    "cost/checkpoint_bytes": "last checkpoint of each run",
    "cost/artifact_bytes": "files logged to MLflow",
}
MAX_BARS = 60


def failures(study: Study) -> Section:
    """Pruned, failed and unfinished runs, with the reasons that were recorded."""
    table = unfinished(study)
    blocks: list[Block] = []
    reasons = Counter(_kind_of_reason(run) for run in study.runs if run.state in ("failed", "pruned"))
    if reasons:
        counted = "; ".join(f"{count} × {reason}" for reason, count in reasons.most_common(6))
        blocks.append(Text(f"Most frequent: {counted}."))
    rungs = [text for text in map(str, json_list(study.run.tag("rungs"))) if text]
    if rungs:
        what = "took over from better ones" if is_population(study) else "stopped"
        words = f"Trials were compared, and the weaker ones {what}, at {', '.join(rungs)} steps."
        blocks.append(Text(words, soft=True))
    return Section("failures", "Pruned, failed and unfinished", [*blocks, table])


def _kind_of_reason(run: Run) -> str:
    """A reason without its numbers, so that equal ones are counted together."""
    reason = " ".join((run.tag("reason") or "no reason recorded").split())
    plain = "".join("#" if letter.isdigit() else letter for letter in reason[:120])
    while "##" in plain:
        plain = plain.replace("##", "#")
    return f"{run.state}: {plain.replace('#', 'N')}"


def unfinished(study: Study) -> Table:
    rows = []
    for run in study.runs:
        odd = [metric_label(name) for name, value in run.metrics.items() if not math.isfinite(value)]
        if run.state == "completed" and not odd:
            continue
        reason = run.tag("reason")
        words = [*([reason] if reason else []), *([f"not finite: {', '.join(sorted(odd))}"] if odd else [])]
        seed = f", seed {run.seed}" if run.kind in ("seed", "confirm") and run.seed is not None else ""
        shown = Cell(f"{run.label}{seed}", run.label, run.link)
        rows.append([shown, text_cell(run.state), count_cell(run.steps), text_cell("; ".join(words))])
    return Table(
        key="unfinished",
        title="Runs that were pruned, failed or have not ended, or have figures that are not finite",
        columns=["run", "state", "steps reached", "reason"],
        rows=rows,
        numeric=[False, False, True, False],
        sortable=True,
    )


def compute(study: Study) -> Section:
    plot = _bars(study)
    blocks: list[Block] = [_totals(study), _by_kind(study), *([plot] if plot else [])]
    return Section("compute", "Compute", blocks)


def _totals(study: Study) -> Table:
    """Wall and device time, trials an hour, bytes, memory: what was recorded of each."""
    runs = study.runs
    training = math.fsum(value for run in runs if (value := run.value("cost/training_seconds")) is not None)
    ends = [run.ended for run in runs if run.ended]
    starts = [run.started for run in runs if run.started]
    span = (max(ends) - min(starts)).total_seconds() if ends and starts else 0.0
    ended = [run for run in study.trials if run.state in ("completed", "pruned")]
    rows = [
        [Cell("wall time of all runs together"), _seconds(total_seconds(runs))],
        [Cell("of it in training steps"), _seconds(training)],
        *_device_time(runs),
        [Cell("from the first start to the last end"), _seconds(span)],
        [Cell("trials an hour, completed or pruned"), _rate(len(ended), span)],
        [Cell("peak memory of a run"), _peak(runs)],
    ]
    rows += _bytes((study.run, *runs))
    return Table(
        key="totals", title="Totals", columns=["quantity", "value"], rows=rows, numeric=[False, True],
        note="Device time is that of training steps, summed over devices; evaluations and starts are not in it.",
    )  # fmt: skip


def _device_time(runs: tuple[Run, ...]) -> list[list[Cell]]:
    """A row for each kind of device, by the metrics ``cost/device_seconds_KIND``."""
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
            Cell(f"device time, {DEVICES.get(kind, kind) or 'all devices'}, {plural(len(values), 'run')}"),
            _seconds(math.fsum(values)),
        ]
        for kind, values in sorted(found.items())
    ]


def _bytes(runs: tuple[Run, ...]) -> list[list[Cell]]:
    """What runs wrote, summed over them; of the datasets the largest, since all runs of a study read one."""
    rows = [[Cell(label), Cell(MISSING)] for label in BYTES.values()]
    places = {name: index for index, name in enumerate(BYTES)}
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
        if name in places:
            rows[places[name]] = row
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
    """Wall time by kind of run, and its share of the study's total."""
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
    rows.append([Cell("together"), *counts])
    columns = ["runs", "number", "with a recorded cost", "wall time", "share"]
    title = "Cost by kind of run"
    return Table(key="costs", title=title, columns=columns, rows=rows, numeric=[False, *[True] * 4])


def _bars(study: Study) -> Plot | None:
    """One column a run: wall seconds, the part spent in training steps below. Of many runs the longest."""
    timed = [run for run in study.runs if run.value("cost/seconds") is not None]
    if not timed:
        return None
    if len(timed) > MAX_BARS:
        timed = sorted(timed, key=lambda run: -run.metrics["cost/seconds"])[:MAX_BARS]
    seconds = [run.metrics["cost/seconds"] for run in timed]
    training = [
        min(run.value("cost/training_seconds") or 0.0, wall) for run, wall in zip(timed, seconds, strict=True)
    ]
    rest = [max(0.0, wall - part) for wall, part in zip(seconds, training, strict=True)]
    total = total_seconds(study.runs)
    places = [float(index) for index in range(len(timed))]
    labels = [
        f"{run.label}: {wall:.1f} s" + (f", {wall / total:.1%} of the study" if total else "")
        for run, wall in zip(timed, seconds, strict=True)
    ]
    longest = max(range(len(timed)), key=seconds.__getitem__)
    series = [
        Series(name=name, x=places, y=heights, labels=labels, style="bars", look=look, faint=faint)
        for name, heights, look, faint in (
            ("training", training, BEST, False),
            ("everything else", rest, MANY, False),
        )
    ]
    return Plot(
        key="cost",
        title="What each run cost" if len(timed) == len(study.runs) else f"The {plural(len(timed), 'longest run')}",
        description=f"Wall seconds of {plural(len(timed), 'run')}: training steps below, evaluation, data and start "
        f"above. The longest is {timed[longest].label} with {seconds[longest]:.1f} s.",
        x_label="",
        y_label="wall seconds",
        series=series,
        x_ticks=[run.label for run in timed],
        stacked=True,
    )
