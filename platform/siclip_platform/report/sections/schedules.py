"""Population based training: the schedule that led to the best member."""

from __future__ import annotations

from typing import Any

from siclip_platform.report.draw.blocks import Section, Text
from siclip_platform.report.draw.values import Cell, Table, parameter_cell, plural
from siclip_platform.report.read.runs import Run, Study
from siclip_platform.report.read.store import json_list


def schedules(study: Study) -> Section | None:
    """The schedule of the best member; None if the study is not a population or recorded no schedule."""
    members = [trial for trial in study.ranked if stages(trial)]
    if not is_population(study) or not members:
        return None
    # `ranked` is in order of the metric.
    best = members[0]
    text = (
        f"A population of {plural(len(study.trials), 'member')} was trained; {best.label} ended best. One training "
        "with the schedule below reproduces its training state. Its recipe is "
        f"schedules/{best.label}.yaml in the study's folder, also logged as an artifact of its run. Of a member that "
        "copied another's state, the other tables show the parameters that it started with."
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
        columns=["from step", "training state copied from", *paths],
        rows=rows,
        numeric=[True, False, *[True] * len(paths)],
    )
    return Section("schedules", "Schedule", [Text(text, soft=True), table])


def is_population(study: Study) -> bool:
    """Whether the study's trials changed their settings during training."""
    return study.run.params.get("study.scheduler") == "pbt"


def stages(member: Run) -> list[dict[str, Any]]:
    """A member's schedule: ``step``, ``weights`` by path and ``parent``, in order of steps; empty without one."""
    return [stage for stage in json_list(member.tag("schedule")) if isinstance(stage, dict)]
