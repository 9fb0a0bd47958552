"""What a scheduler has to know again after a restart."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler

from siclip_platform.search.journal import Journal
from siclip_platform.search.study import StudyPlan


@dataclass
class _Past:
    """As much of a Tune trial as asynchronous successive halving looks at."""

    trial_id: str
    config: dict[str, Any] = field(default_factory=dict)


def replay_into(plan: StudyPlan, journal: Journal) -> None:
    """Give ASHA the results of the trials that are over, in the order in which they came.

    Those in flight report theirs again. The median rule begins anew with the trials that remain.
    """
    if not isinstance(plan.scheduler, AsyncHyperBandScheduler):
        return
    past = {entry.name: _Past(entry.name, dict(entry.values)) for entry in journal.finished()}
    for trial in past.values():
        plan.scheduler.on_trial_add(None, trial)
    for name, index in journal.sequence:
        if name in past:
            step, means, _ = journal.entries[name].results[index]
            plan.scheduler.on_trial_result(None, past[name], {"step": step, "training_iteration": index + 1, **means})
    for entry in journal.finished():
        last = {"step": entry.steps, "training_iteration": len(entry.results), **entry.last}
        if entry.results:
            plan.scheduler.on_trial_complete(None, past[entry.name], last)
