"""The state of a scheduler, and of a searcher whose database was lost, after a restart, from the journal."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler

from siclip.errors import UserError
from siclip_platform.cluster.ray_patches import forget_trial
from siclip_platform.search.ledger.journal import Entry, Journal
from siclip_platform.search.policy.schedulers import Hyperband
from siclip_platform.search.policy.searcher import StudySearch
from siclip_platform.search.study import StudyPlan

DATABASE = "optuna.db"


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


def forget_in_scheduler(plan: StudyPlan, trial: Any) -> None:
    """Make a scheduler forget a Tune trial whose process was lost: another one reports its results again."""
    if trial is None:
        return
    bracket = forget_trial(plan.scheduler, trial)
    if isinstance(plan.scheduler, Hyperband) and bracket is not None:
        plan.scheduler.given_back.append(bracket)


def results_of_setting(entry: Entry) -> list[tuple[int, dict[str, float]]]:
    """The results that the searcher's suggestion led to: of a population's member those before its first copy."""
    until = entry.parents[0][0] if entry.parents else math.inf
    return [(step, means) for step, means, _ in entry.results if step <= until]


def setting_failed(entry: Entry) -> bool:
    """Whether a trial failed with the setting that the searcher suggested."""
    return entry.state == "failed" and not entry.parents


def restore_searcher(plan: StudyPlan, journal: Journal) -> None:
    """Tell a searcher that lost its trials everything that the journal has, in order; it must suggest the same again.

    A suggestion depends on the seed, the trial's name and the results before it, so the same order restores the
    searcher exactly.

    Raises:
        UserError: the searcher has lost only some of its trials, or suggests something else.
    """
    searcher = plan.searcher
    # A trial is in the searcher's storage before it is in the journal.
    if not isinstance(searcher, StudySearch) or all(map(searcher.knows, journal.entries)):
        return
    lost = f"{plan.folder / DATABASE}, the database of the search, lacks trials that {journal.path} has"
    remedy = (
        "restore it from a copy, or begin a new study, which reuses the finished trainings of the same MLflow store"
    )
    if any(map(searcher.knows, journal.entries)):
        raise UserError(f"{lost}: {remedy}")
    for event in journal.events():
        name = event.get("trial", "")
        match event["event"]:
            case "suggested":
                if searcher.suggest(name) != event["values"]:
                    raise UserError(
                        f"{lost}, and cannot be written again from it ({name} would be another setting): remove the "
                        f"file that was made now, and {remedy}"
                    )
            case "result" if event["step"] in dict(results_of_setting(journal.entries[name])):
                searcher.on_trial_result(name, {"step": event["step"], **event["metrics"]})
            case "told":
                entry = journal.entries[name]
                searcher.on_trial_complete(name, result=last_of_setting(entry), error=setting_failed(entry))


def last_of_setting(entry: Entry) -> dict[str, float] | None:
    """The last of `results_of_setting` with its step, as a searcher gets it; None without results."""
    results = results_of_setting(entry)
    return {"step": results[-1][0], **results[-1][1]} if results else None
