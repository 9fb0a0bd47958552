"""The report's tables: the same rows go into the page and into its Markdown twin."""

from __future__ import annotations

import math
from collections.abc import Iterable

from siclip_platform.report.query import Run, Study
from siclip_platform.report.values import (
    MISSING,
    Cell,
    Table,
    count_cell,
    metric_cell,
    parameter_cell,
    points,
    seconds_cell,
    text_cell,
)

RECALLS = [f"{way}_retrieval_recall@{k}" for way in ("image", "text") for k in (1, 5, 10)]
TEST_METRICS = [f"test/{name}" for name in ("mean_recall@1", *RECALLS, "beats_all_negatives")]
COUNTS = {
    "cost/parameters_trainable": "trainable parameters",
    "cost/parameters_image": "image tower parameters",
    "cost/parameters_text": "text tower parameters",
}


def metric_label(name: str) -> str:
    """``test/image_retrieval_recall@1`` → ``test image retrieval R@1``."""
    return name.replace("/", " ").replace("recall@", "R@").replace("_", " ")


def best_setting(study: Study) -> Table:
    """Searched parameters of the best run, or of the best trial so far; every digit that was logged."""
    source = study.best or study.best_trial
    rows = [[Cell(path, path), text_cell(source.params.get(path) if source else None)] for path in study.searched]
    title = "Best setting" if study.best else "Best setting so far"
    return Table(key="setting", title=title, columns=["parameter", "value"], rows=rows, numeric=[False, False])


def comparison(study: Study) -> Table:
    """Best, control and teacher side by side, with the difference of the first two."""
    roles = (study.best, study.control, study.teacher)

    def row(label: str, cells: Iterable[Cell], gap: Cell | None = None) -> list[Cell]:
        return [Cell(label), *cells, gap or Cell("")]

    def metrics(name: str) -> list[float | None]:
        return [run.metrics.get(name) if run else None for run in roles]

    rows = [
        row("state", (text_cell(run.state if run else "no run") for run in roles)),
        row("model", (text_cell(run.params.get("model.name") if run else None) for run in roles)),
        row("optimizer steps", (count_cell(run.steps if run else None) for run in roles)),
    ]
    for name in dict.fromkeys((*TEST_METRICS, study.metric)):
        cells = (metric_cell(name, value) for value in metrics(name))
        rows.append(row(metric_label(name), cells, _gap(name, *metrics(name)[:2])))
    rows += [row(label, map(count_cell, metrics(name))) for name, label in COUNTS.items()]
    rows.append(row("wall time", map(seconds_cell, metrics("cost/seconds"))))
    rows.append(row("of it training", map(seconds_cell, metrics("cost/training_seconds"))))
    columns = ["quantity", "best", "control", "teacher", "best − control"]
    title = "Best, control and teacher side by side"
    return Table(key="comparison", title=title, columns=columns, rows=rows, numeric=[False, *[True] * 4])


def _gap(name: str, best: float | None, control: float | None) -> Cell:
    if best is None or control is None or not (math.isfinite(best) and math.isfinite(control)):
        return Cell("")
    return Cell(points(name, best - control), best - control)


def differences(study: Study) -> Table | None:
    """Recipe fields in which best and control differ; None unless both exist."""
    if study.best is None or study.control is None:
        return None
    paths = sorted({*study.best.params, *study.control.params})
    pairs = [(path, study.best.params.get(path), study.control.params.get(path)) for path in paths]
    rows = [
        [Cell(path, path), parameter_cell(best), parameter_cell(control)]
        for path, best, control in pairs
        if best != control
    ]
    title = "Recipe fields in which best and control differ"
    columns = ["field", "best", "control"]
    return Table(key="differences", title=title, columns=columns, rows=rows, numeric=[False] * 3)


def trials(study: Study) -> Table:
    """Every trial, the best value of the study's metric first, those without a value last."""
    sign = 1 if study.mode == "min" else -1

    def order(trial: Run) -> tuple[bool, float]:
        value = trial.metrics.get(study.metric, math.nan)
        return (not math.isfinite(value), sign * value if math.isfinite(value) else 0.0)

    ranked = sorted(study.trials, key=order)
    best, total = study.best_trial, total_seconds(study.runs)
    rows = []
    for trial in ranked:
        label = f"{trial.label} (best)" if trial is best else trial.label
        seconds = trial.metrics.get("cost/seconds")
        rows.append(
            [
                Cell(label, trial.label),
                text_cell(trial.state),
                metric_cell(study.metric, trial.metrics.get(study.metric)),
                count_cell(trial.steps),
                seconds_cell(seconds),
                share_cell(seconds, total),
                *(parameter_cell(trial.params.get(path)) for path in study.searched),
            ]
        )
    columns = ["trial", "state", metric_label(study.metric), "steps", "wall time", "share of study"]
    text = {path for path in study.searched for trial in ranked if _is_text(trial.params.get(path))}
    return Table(
        key="trials",
        title="Trials",
        columns=[*columns, *study.searched],
        rows=rows,
        numeric=[False, False, True, True, True, True, *(path not in text for path in study.searched)],
        sortable=True,
        marked=frozenset(index for index, trial in enumerate(ranked) if trial is best),
    )


def _is_text(value: str | None) -> bool:
    return isinstance(parameter_cell(value).value, str)


def total_seconds(runs: Iterable[Run]) -> float:
    """Sum of the recorded wall times."""
    seconds = (run.metrics.get("cost/seconds", math.nan) for run in runs)
    return math.fsum(value for value in seconds if math.isfinite(value))


def share_cell(seconds: float | None, total: float) -> Cell:
    if seconds is None or not math.isfinite(seconds) or total <= 0:
        return Cell(MISSING)
    return Cell(f"{100 * seconds / total:.1f} %", seconds / total)


def costs(study: Study) -> Table:
    """Wall time by kind of run, and its share of the study's total."""
    total = total_seconds(study.runs)
    rows = []
    for kind in ("teacher", "trial", "best", "control"):
        runs = [run for run in study.runs if run.kind == kind]
        timed = [run for run in runs if math.isfinite(run.metrics.get("cost/seconds", math.nan))]
        seconds = total_seconds(timed) if timed else None
        label = "trials" if kind == "trial" else kind
        cells = (count_cell(len(runs)), count_cell(len(timed)), seconds_cell(seconds))
        rows.append([Cell(label), *cells, share_cell(seconds, total)])
    everything = sum(int(row[2].value or 0) for row in rows)
    counts = (
        count_cell(len(study.runs)),
        count_cell(everything),
        seconds_cell(total),
        share_cell(total, total),
    )
    rows.append([Cell("together"), *counts])
    columns = ["runs", "number", "with a recorded cost", "wall time", "share"]
    title = "Cost by kind of run"
    return Table(key="costs", title=title, columns=columns, rows=rows, numeric=[False, *[True] * 4])


def unfinished(study: Study) -> Table:
    """Runs that are not completed or whose figures are not finite, with the reason where one was recorded."""
    rows = []
    for run in study.runs:
        odd = [metric_label(name) for name, value in run.metrics.items() if not math.isfinite(value)]
        if run.state == "completed" and not odd:
            continue
        reason = run.tags.get("siclip.reason")
        words = [*([reason] if reason else []), *([f"not finite: {', '.join(sorted(odd))}"] if odd else [])]
        rows.append([Cell(run.label), text_cell(run.state), count_cell(run.steps), text_cell("; ".join(words))])
    columns = ["run", "state", "steps reached", "reason"]
    title = "Runs that were pruned, failed or have not ended"
    return Table(key="unfinished", title=title, columns=columns, rows=rows, numeric=[False, False, True, False])


def provenance(study: Study) -> Table:
    """What identifies code, data and recipe of each run that the report compares."""
    roles = [run for run in (study.best, study.control, study.teacher) if run]
    rows = []
    for run in (study.run, *roles):
        tags = [text_cell(run.tags.get(f"siclip.{name}")) for name in ("git_commit", "dataset_hash", "recipe_hash")]
        rows.append([Cell(run.label), *tags, text_cell(run.run_id)])
    columns = ["run", "git commit", "dataset hash", "recipe hash", "MLflow run"]
    return Table(key="provenance", title="Code, data and recipe", columns=columns, rows=rows, numeric=[False] * 5)
