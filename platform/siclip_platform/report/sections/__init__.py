"""The sections of a report, in the order in which they are read. Each is a function of a study."""

from __future__ import annotations

from siclip_platform.report.draw.blocks import Section
from siclip_platform.report.read.runs import Study
from siclip_platform.report.sections.ablation import ablation, confirmation
from siclip_platform.report.sections.costs import compute, failures
from siclip_platform.report.sections.curves import curves
from siclip_platform.report.sections.data import data
from siclip_platform.report.sections.leaderboard import comparison, leaderboard
from siclip_platform.report.sections.questions import question
from siclip_platform.report.sections.reproduce import reproduce
from siclip_platform.report.sections.schedules import schedules
from siclip_platform.report.sections.search import search
from siclip_platform.report.sections.sharing import sharing
from siclip_platform.report.sections.summary import summary
from siclip_platform.report.sections.tradeoff import tradeoff
from siclip_platform.report.sections.training import divergence, pair_matching

ORDER = (
    summary, question, ablation, confirmation, comparison, leaderboard, schedules, curves, search, tradeoff, sharing,
    divergence, pair_matching, failures, data, compute, reproduce,
)  # fmt: skip


def sections(study: Study) -> list[Section]:
    """Those that have something to say about the study."""
    return [found for make in ORDER if (found := make(study)) is not None]
