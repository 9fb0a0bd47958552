"""Sharing patterns as diagrams, with the parameters they save and their quality."""

from __future__ import annotations

from collections.abc import Sequence

from siclip_platform.report.draw.blocks import Diagram, Diagrams, Section, Text
from siclip_platform.report.draw.diagrams import PART_NAMES, letters, pattern, sharing_svg
from siclip_platform.report.draw.values import Cell, Table, count_cell, metric_cell, metric_label
from siclip_platform.report.judge.statistics import t_interval
from siclip_platform.report.read.runs import Run, Study
from siclip_platform.report.sections.tradeoff import Point, parameters

PATHS = {"image": "model.image_sharing", "text": "model.text_sharing"}
DEFAULT = "model's default"


def sharing(study: Study) -> Section | None:
    """The sharing patterns, if runs differ in them or the study asks about them."""
    used = {tower: _patterns(study, path) for tower, path in PATHS.items()}
    varied = any(len(names) > 1 for names in used.values())
    if not varied and study.question != "sharing":
        return None
    drawn = Diagrams([diagram for tower, names in used.items() for diagram in _diagrams(study, tower, names)])
    text = (
        "Each box is one SAS-P block, in order. Boxes with the same letter, joined by an arc, share their weights; "
        "dashed boxes have their own. Patterns are ranked by the mean over completed runs. Runs of one pattern may "
        "differ in other settings, so the ranking of a search also reflects those."
    )
    return Section("sharing", "Sharing patterns", [Text(text, soft=True), drawn, _table(study)])


def _patterns(study: Study, path: str) -> list[str]:
    return list(dict.fromkeys(name for run in study.leaves if (name := _name(run, path)) is not None))


def _name(run: Run, path: str) -> str | None:
    text = run.params.get(path)
    return DEFAULT if text in ("None", "") else text


def _diagrams(study: Study, tower: str, names: Sequence[str]) -> list[Diagram]:
    diagrams = []
    for name in names:
        found = pattern(name)
        if found is None or found.part is None:
            continue
        runs = [run for run in study.leaves if _name(run, PATHS[tower]) == name]
        values = [
            value for run in runs if run.state == "completed" and (value := run.value(study.metric)) is not None
        ]
        # Runs of one pattern may differ in width; the smallest is shown.
        counts = [value for run in runs if (value := run.value(f"cost/parameters_{tower}")) is not None]
        quality = "no completed run"
        if values:
            mean = metric_cell(study.metric, t_interval(values).mean).text
            quality = f"{metric_label(study.metric)} {mean}, {len(values)} completed"
        size = f"{min(counts):,.0f} parameters in the tower" if counts else "parameters not recorded"
        description = f"{PART_NAMES[found.part]} shared: {letters(found)}"
        svg = sharing_svg(found, f"{tower} {name}")
        diagrams.append(Diagram(f"{tower}, {name}", svg, description, [quality, size]))
    return diagrams


def _table(study: Study) -> Table:
    """One row per pair of patterns: parameters, share saved relative to the largest, and quality."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in study.leaves:
        key = (_name(run, PATHS["image"]) or "—", _name(run, PATHS["text"]) or "—")
        groups.setdefault(key, []).append(run)
    counted = {key: Point("", 0.0, runs).cost(parameters) for key, runs in groups.items()}
    # Savings are relative to the largest pair of patterns, usually the one without sharing.
    largest = max((value for value in counted.values() if value), default=None)
    rows = []
    for key, runs in groups.items():
        values = [
            value for run in runs if run.state == "completed" and (value := run.value(study.metric)) is not None
        ]
        size, mean = counted[key], t_interval(values)
        saved = None if size is None or not largest else 1 - size / largest
        rows.append(
            [
                Cell(key[0], key[0]),
                Cell(key[1], key[1]),
                count_cell(size),
                Cell("—") if saved is None else Cell(f"{100 * saved:.1f} %", saved),
                metric_cell(study.metric, mean.mean if values else None),
                Cell(str(len(values)), len(values)),
            ]
        )
    sign = -1 if study.higher_is_better else 1
    rows.sort(key=lambda row: (row[4].value is None, sign * float(row[4].value or 0)))
    return Table(
        key="patterns",
        title="Patterns by quality",
        columns=["image", "text", "parameters", "saved", metric_label(study.metric), "completed runs"],
        rows=rows,
        numeric=[False, False, True, True, True, True],
        sortable=True,
    )
