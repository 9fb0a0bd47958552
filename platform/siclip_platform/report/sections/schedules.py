"""Population based training: the schedule that the best member's training state comes from."""

from __future__ import annotations

from typing import Any

from siclip_platform.report.draw.blocks import Section, Text
from siclip_platform.report.draw.values import Cell, Table, parameter_cell, plural
from siclip_platform.report.read.runs import Run, Study
from siclip_platform.report.read.store import json_list


def schedules(study: Study) -> Section | None:
    members = [trial for trial in study.ranked if stages(trial)]
    if not is_population(study) or not members:
        return None
    best = members[0]
    words = (
        f"A population of {plural(len(study.trials), 'member')} trained side by side. {best.label} ended best. Its "
        "training state is what one training by the schedule below computes; "
        f"schedules/{best.label}.yaml in the study's folder is its recipe, also an artifact of its run. Where a "
        "member took over from another, its parameters in the other tables are those that it began with."
    )
    paths = list(dict.fromkeys(path for stage in stages(best) for path in stage["weights"]))
    rows = [
        [
            Cell(str(stage["step"]), float(stage["step"])),
            Cell(str(stage["parent"] or "—")),
            *(parameter_cell(str(stage["weights"].get(path, "—"))) for path in paths),
        ]
        for stage in stages(best)
    ]
    table = Table(
        key="schedule",
        title="Schedule of the best member",
        columns=["from step", "training state of", *paths],
        rows=rows,
        numeric=[True, False, *[True] * len(paths)],
    )
    return Section("schedules", "Schedule", [Text(words, soft=True), table])


def is_population(study: Study) -> bool:
    """Whether its trials changed their settings as they went."""
    return study.run.params.get("study.scheduler") == "pbt"


def stages(member: Run) -> list[dict[str, Any]]:
    """``step``, ``weights`` by path and ``parent``, in the order of the steps; empty without a schedule."""
    return [stage for stage in json_list(member.tag("schedule")) if isinstance(stage, dict)]
