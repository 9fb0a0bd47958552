"""Runs that did not complete, and why."""

from __future__ import annotations

import math
import re
from collections import Counter

from siclip_platform.report.draw.blocks import Block, Section, Text
from siclip_platform.report.draw.values import Cell, Table, count_cell, metric_label, text_cell
from siclip_platform.report.read.runs import Run, Study
from siclip_platform.report.read.store import json_list
from siclip_platform.report.sections.schedules import is_population


def failures(study: Study) -> Section:
    """Pruned, failed and unfinished runs with their recorded reasons."""
    table = unfinished(study)
    blocks: list[Block] = []
    reasons = Counter(_reason_class(run) for run in study.runs if run.state in ("failed", "pruned"))
    if reasons:
        counted = "; ".join(f"{count} × {reason}" for reason, count in reasons.most_common(6))
        blocks.append(Text(f"Most frequent: {counted}."))
    rungs = [text for text in map(str, json_list(study.run.tag("rungs"))) if text]
    if rungs:
        fate = "continued from copies of better ones" if is_population(study) else "were stopped"
        text = f"Trials were compared at {', '.join(rungs)} steps; the weaker ones {fate}."
        blocks.append(Text(text, soft=True))
    return Section("failures", "Pruned, failed and unfinished", [*blocks, table])


def _reason_class(run: Run) -> str:
    """State and reason with numbers replaced by N, so that reasons that differ only in numbers count together."""
    reason = " ".join((run.tag("reason") or "no reason recorded").split())
    # Bounded, because a reason may contain a traceback.
    return f"{run.state}: {re.sub(r'[0-9]+', 'N', reason[:120])}"


def unfinished(study: Study) -> Table:
    """Runs that are not completed or have metrics that are not finite."""
    rows = []
    for run in study.runs:
        odd = [metric_label(name) for name, value in run.metrics.items() if not math.isfinite(value)]
        if run.state == "completed" and not odd:
            continue
        reason = run.tag("reason")
        reasons = [*([reason] if reason else []), *([f"not finite: {', '.join(sorted(odd))}"] if odd else [])]
        seed = f", seed {run.seed}" if run.kind in ("seed", "confirm") and run.seed is not None else ""
        shown = Cell(f"{run.label}{seed}", run.label, run.link)
        rows.append([shown, text_cell(run.state), count_cell(run.steps), text_cell("; ".join(reasons))])
    return Table(
        key="unfinished",
        title="Runs that were pruned, failed or are unfinished, or have metrics that are not finite",
        columns=["run", "state", "steps reached", "reason"],
        rows=rows,
        numeric=[False, False, True, False],
        sortable=True,
    )
