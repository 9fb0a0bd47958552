"""A scheduler's state after a restart, from the journal."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler

from siclip_platform.search.ledger.journal import Journal
from siclip_platform.search.study import StudyPlan


@dataclass
class _PastTrial:
    """The part of a Tune trial that asynchronous successive halving reads."""

    trial_id: str
    config: dict[str, Any] = field(default_factory=dict)


def replay_into_scheduler(plan: StudyPlan, journal: Journal) -> None:
    """Give ASHA and Hyperband the results of finished trials, in the order in which they arrived.

    Trials in flight report theirs again. The median rule starts without the finished trials.
    """
    if not isinstance(plan.scheduler, AsyncHyperBandScheduler):
        return
    past = {entry.name: _PastTrial(entry.name, dict(entry.values)) for entry in journal.finished()}
    # Hyperband draws a bracket per trial that is added, so these come first, in the order of suggestion.
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
