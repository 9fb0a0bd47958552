"""The leading setting, compared with control and teacher, and all trials ranked."""

from __future__ import annotations

import math
from collections.abc import Iterable

from siclip_platform.report.draw.blocks import Block, Section, Text
from siclip_platform.report.draw.values import (
    MISSING,
    Cell,
    Table,
    count_cell,
    metric_cell,
    metric_label,
    parameter_cell,
    points,
    seconds_cell,
    text_cell,
)
from siclip_platform.report.judge.numbers import number
from siclip_platform.report.judge.pools import pool_of
from siclip_platform.report.judge.winner import find_winner
from siclip_platform.report.read.runs import Run, Study, measured
from siclip_platform.report.sections.cost import total_seconds
from siclip_platform.report.sections.statement import UNCONFIRMED

RECALLS = [f"{way}_retrieval_recall@{k}" for way in ("image", "text") for k in (1, 5, 10)]
TEST_METRICS = [f"test/{name}" for name in ("mean_recall@1", *RECALLS, "beats_all_negatives")]
COUNTS = {
    "cost/parameters_trainable": "trainable parameters",
    "cost/parameters_image": "image tower parameters",
    "cost/parameters_text": "text tower parameters",
}
NO_PAGES = "The store has no web pages: use --mlflow-url to link to the runs."
SHOWN_PARAMETERS = 14  # a wider table needs scrolling on most screens


def comparison(study: Study) -> Section | None:
    """The retrained leading setting, control and teacher side by side, if the study trained one of the first two."""
    if study.best is None and study.control is None:
        return None
    tables = [_setting(study), _roles(study), *_differences(study)]
    return Section("comparison", "Comparison", tables)


def leaderboard(study: Study) -> Section:
    """All trials in order of the study's metric."""
    rows = "One row per trial, with its last reported value."
    if study.type == "ablation":
        rows = "One row per setting; with several seeds the values are means."
    blocks: list[Block] = [Text(f"{rows} Select a heading to sort by it.", soft=True)]
    if study.best is None and study.control is None and study.searched and study.best_trial:
        blocks.append(_setting(study))
    return Section("leaderboard", "Leaderboard", [*blocks, trials(study)])


def _setting(study: Study) -> Table:
    """Searched parameters of the leading setting that have an effect, with all logged digits."""
    source = study.best or study.best_trial
    # A parameter that has no effect in this setting is not one of its parameters.
    shown = [path for path in study.searched if source is None or path in source.params]
    rows = [[Cell(path, path), text_cell(source.params.get(path) if source else None)] for path in shown]
    title = "Best setting" if find_winner(study).best else UNCONFIRMED
    return Table(key="setting", title=title, columns=["parameter", "value"], rows=rows, numeric=[False, False])


def _roles(study: Study) -> Table:
    roles = (study.best, study.control, study.teacher)

    def row(label: str, cells: Iterable[Cell], gap: Cell | None = None, where: str = "") -> list[Cell]:
        return [Cell(label), *cells, gap or Cell(""), Cell(where)]

    def metrics(name: str) -> list[float | None]:
        return [run.metrics.get(name) if run else None for run in roles]

    rows = [
        row("state", (text_cell(run.state if run else "no run") for run in roles)),
        row("model", (text_cell(run.params.get("model.name") if run else None) for run in roles)),
        row("optimizer steps", (count_cell(run.steps if run else None) for run in roles)),
    ]
    for name in dict.fromkeys((*measured(TEST_METRICS, *roles), study.metric)):
        if all(value is None for value in metrics(name)):
            continue
        gap, pool = _gap(study.best, study.control, name), pool_of(study, name)
        shown = Cell("") if gap is None else Cell(points(name, gap), gap)
        where = pool.words(name) if pool else ""
        rows.append(row(metric_label(name), (metric_cell(name, value) for value in metrics(name)), shown, where))
    rows += [row(label, map(count_cell, metrics(name))) for name, label in COUNTS.items() if any(metrics(name))]
    rows.append(row("wall time", map(seconds_cell, metrics("cost/seconds"))))
    rows.append(row("of this in training", map(seconds_cell, metrics("cost/training_seconds"))))
    columns = ["quantity", "leading", "control", "teacher", "leading − control", "measured on"]
    title = "Leading setting, control and teacher side by side"
    return Table(key="comparison", title=title, columns=columns, rows=rows, numeric=[False, *[True] * 4, False])


def _gap(one: Run | None, other: Run | None, name: str) -> float | None:
    """``one`` − ``other``; None unless both have the metric."""
    mine, theirs = one.value(name) if one else None, other.value(name) if other else None
    return None if mine is None or theirs is None else mine - theirs


def _differences(study: Study) -> list[Table]:
    """Recipe fields in which leading setting and control differ; empty without both runs."""
    if study.best is None or study.control is None:
        return []
    paths = sorted({*study.best.params, *study.control.params})
    pairs = [(path, study.best.params.get(path), study.control.params.get(path)) for path in paths]
    rows = [
        [Cell(path, path), parameter_cell(best), parameter_cell(control)]
        for path, best, control in pairs
        if best != control
    ]
    title = "Recipe fields in which leading setting and control differ"
    columns = ["field", "leading", "control"]
    return [Table(key="differences", title=title, columns=columns, rows=rows, numeric=[False] * 3)]


def trials(study: Study) -> Table:
    """All trials, best value of the study's metric first and trials without a value last.

    The value of a pruned trial is from a smaller budget; its state shows that.
    """
    sign = 1 if study.mode == "min" else -1

    def order(trial: Run) -> tuple[bool, float]:
        value = trial.value(study.metric)
        # False sorts before True, so trials without a value come last in both modes.
        return (value is None, sign * (value or 0.0))

    ranked = sorted(study.trials, key=order)
    leader, total = None if study.type == "runs" else study.best_trial, total_seconds(study.runs)
    # A parameter without effect in any trial has no column.
    searched = [path for path in study.searched if any(path in trial.params for trial in study.trials)]
    paths = searched or _varying(study)
    linked = any(trial.link for trial in ranked)
    rows = []
    for rank, trial in enumerate(ranked, 1):
        label = f"{trial.label} (leader)" if trial is leader else trial.label
        seconds = trial.metrics.get("cost/seconds")
        rows.append(
            [
                Cell(label, trial.label, trial.link),
                Cell(str(rank), rank) if trial.value(study.metric) is not None else Cell("—"),
                text_cell(trial.state),
                metric_cell(study.metric, trial.metrics.get(study.metric)),
                count_cell(trial.steps),
                seconds_cell(seconds),
                share_cell(seconds, total),
                *(parameter_cell(trial.params.get(path)) for path in paths),
                text_cell(trial.run_id),
            ]
        )
    # A column is sorted as numbers only if every trial has a number in it.
    text = {path for path in paths for trial in ranked if number(trial.params.get(path)) is None}
    columns = [
        "trial",
        "rank",
        "state",
        metric_label(study.metric),
        "steps",
        "wall time",
        "share of study",
    ]
    return Table(
        key="trials",
        title={"search": "Trials", "ablation": "Settings"}.get(study.type, "Runs"),
        columns=[*columns, *paths, "MLflow run"],
        rows=rows,
        numeric=[False, True, False, True, True, True, True, *(path not in text for path in paths), False],
        sortable=True,
        marked=frozenset(index for index, trial in enumerate(ranked) if trial is leader),
        note=" ".join(filter(None, [_where(study), "" if linked or not ranked else NO_PAGES])),
    )


def _where(study: Study) -> str:
    """What the study's metric was measured on."""
    pool = pool_of(study, study.metric)
    return f"{metric_label(study.metric)}: {pool.words(study.metric)}." if pool else ""


def _varying(study: Study) -> list[str]:
    """Recipe fields in which the trials differ, without the seed and the study's own parameters."""
    paths = sorted({path for trial in study.trials for path in trial.params})
    found = [path for path in paths if len({trial.params.get(path) for trial in study.trials}) > 1]
    return [path for path in found if not path.startswith("study.") and path != "training.seed"][:SHOWN_PARAMETERS]


def share_cell(seconds: float | None, total: float) -> Cell:
    """A run's share of the study's wall time."""
    if seconds is None or not math.isfinite(seconds) or total <= 0:
        return Cell(MISSING)
    return Cell(f"{100 * seconds / total:.1f} %", seconds / total)
