"""A report's parts: one for each study, with keys that no other part has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from siclip_platform.report.draw.blocks import Block, Drawn, Section
from siclip_platform.report.draw.plots import Heatmap, Plot
from siclip_platform.report.draw.values import Cell, Table, duration, metric_cell, metric_label
from siclip_platform.report.judge.winner import find_winner
from siclip_platform.report.read.runs import Study
from siclip_platform.report.sections import sections
from siclip_platform.report.sections.price import total_seconds


@dataclass(frozen=True)
class Part:
    """What is said about one study."""

    title: str
    subtitle: str
    sections: Sequence[Section]

    @property
    def drawn(self) -> list[Drawn]:
        return [plot for section in self.sections for plot in section.drawn]

    @property
    def tables(self) -> list[Table]:
        return [table for section in self.sections for table in section.tables]


def make_parts(studies: Sequence[Study]) -> list[Part]:
    """One part a study; keys of the second and later ones begin with ``s2-`` and so on."""
    return [
        Part(_title(study), _subtitle(study), _prefixed(sections(study), f"s{index}-" if index > 1 else ""))
        for index, study in enumerate(studies, 1)
    ]


def _title(study: Study) -> str:
    return study.name if study.type == "runs" else f"{study.type.capitalize()} {study.name}"


def _subtitle(study: Study) -> str:
    started = f"{study.run.started:%Y-%m-%d %H:%M} UTC" if study.run.started else "at an unknown time"
    return f"MLflow experiment {study.experiment} · started {started} · state: {study.run.state}"


def _prefixed(found: list[Section], prefix: str) -> list[Section]:
    def renamed(block: Block) -> Block:
        return replace(block, key=prefix + block.key) if isinstance(block, Plot | Heatmap | Table) else block

    return [Section(prefix + each.key, each.title, [renamed(block) for block in each.blocks]) for each in found]


def overview(studies: Sequence[Study]) -> list[Table]:
    """All studies side by side, where there are several."""
    if len(studies) < 2:
        return []
    rows = []
    for study in studies:
        winner = find_winner(study)
        top = max((study.gain(run.metrics[study.metric]) for run in study.ranked), default=None)
        best = None if top is None else study.gain(top)
        seconds = total_seconds(study.runs)
        rows.append(
            [
                Cell(study.name, study.name, study.run.link),
                Cell(study.type),
                Cell(study.run.state),
                Cell(str(len(study.leaves)), len(study.leaves)),
                Cell(metric_label(study.metric)),
                metric_cell(study.metric, best),
                Cell(winner.name or "—"),
                Cell(winner.status),
                Cell(duration(seconds), seconds),
            ]
        )
    columns = ["study", "type", "state", "runs", "metric", "highest", "leading setting", "status", "wall time"]
    numeric = [False, False, False, True, False, True, False, False, True]
    return [Table(key="overview", title="Studies", columns=columns, rows=rows, numeric=numeric, sortable=True)]
