"""The parts of a report: one per study, with its sections in reading order, and an overview of several studies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from siclip_platform.report.draw.blocks import Block, Part, Section
from siclip_platform.report.draw.plots import Heatmap, Plot
from siclip_platform.report.draw.values import Cell, Table, duration, metric_cell, metric_label
from siclip_platform.report.judge.winner import find_winner
from siclip_platform.report.read.runs import Study
from siclip_platform.report.sections.ablation import ablation, confirmation
from siclip_platform.report.sections.compute import compute
from siclip_platform.report.sections.cost import total_seconds
from siclip_platform.report.sections.curves import curves
from siclip_platform.report.sections.data import data
from siclip_platform.report.sections.failures import failures
from siclip_platform.report.sections.leaderboard import comparison, leaderboard
from siclip_platform.report.sections.published import published
from siclip_platform.report.sections.questions import question
from siclip_platform.report.sections.reproduce import reproduce
from siclip_platform.report.sections.schedules import schedules
from siclip_platform.report.sections.search import search
from siclip_platform.report.sections.sharing import sharing
from siclip_platform.report.sections.statement import UNCONFIRMED
from siclip_platform.report.sections.summary import advice, summary
from siclip_platform.report.sections.tradeoff import tradeoff
from siclip_platform.report.sections.training import divergence, pair_matching

# The result first, then what supports it, then what is needed to check and repeat it.
ORDER = (
    summary,
    advice,
    question,
    ablation,
    confirmation,
    comparison,
    leaderboard,
    published,
    schedules,
    curves,
    search,
    tradeoff,
    sharing,
    divergence,
    pair_matching,
    failures,
    data,
    compute,
    reproduce,
)


def make_parts(studies: Sequence[Study]) -> list[Part]:
    """One part per study. Keys of the second study begin with ``s2-`` and so on, so that they are unique."""
    return [
        Part(_title(study), _subtitle(study), _prefixed(_sections(study), f"s{index}-" if index > 1 else ""))
        for index, study in enumerate(studies, 1)
    ]


def _sections(study: Study) -> list[Section]:
    """The sections that apply to the study."""
    return [section for make in ORDER if (section := make(study)) is not None]


def _title(study: Study) -> str:
    return study.name if study.type == "runs" else f"{study.type.capitalize()} {study.name}"


def _subtitle(study: Study) -> str:
    started = f"{study.run.started:%Y-%m-%d %H:%M} UTC" if study.run.started else "at an unknown time"
    return f"MLflow experiment {study.experiment} · started {started} · state: {study.run.state}"


def _prefixed(sections: list[Section], prefix: str) -> list[Section]:
    def renamed(block: Block) -> Block:
        return replace(block, key=prefix + block.key) if isinstance(block, Plot | Heatmap | Table) else block

    return [Section(prefix + each.key, each.title, [renamed(block) for block in each.blocks]) for each in sections]


def overview(studies: Sequence[Study]) -> list[Table]:
    """A table of all studies; empty for a single study."""
    if len(studies) < 2:
        return []
    columns = ["study", "type", "state", "runs", "metric", "highest", "leading setting", "status", "wall time"]
    return [
        Table(
            key="overview",
            title="Studies",
            columns=columns,
            rows=[_overview_row(study) for study in studies],
            numeric=[False, False, False, True, False, True, False, False, True],
            sortable=True,
        )
    ]


def _overview_row(study: Study) -> list[Cell]:
    winner = find_winner(study)
    top = max((study.gain(run.metrics[study.metric]) for run in study.ranked), default=None)
    seconds = total_seconds(study.runs)
    return [
        Cell(study.name, study.name, study.run.link),
        Cell(study.type),
        Cell(study.run.state),
        Cell(str(len(study.leaves)), len(study.leaves)),
        Cell(metric_label(study.metric)),
        metric_cell(study.metric, None if top is None else study.gain(top)),
        Cell(winner.name or "—"),
        Cell("best" if winner.best else "" if winner.status == "none" else UNCONFIRMED.lower()),
        Cell(duration(seconds), seconds),
    ]
