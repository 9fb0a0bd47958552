"""The result of a study: how each trial ended."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siclip.errors import UserError
from siclip_platform.recipes.recipe import Recipe
from siclip_platform.search.ledger.journal import Entry, TrialState
from siclip_platform.search.study import StudyPlan


@dataclass(frozen=True)
class TrialOutcome:
    """How one trial ended. ``value``: the study's metric at ``steps``, the mean over seeds; NaN if there is none."""

    trial_id: str
    values: dict[str, Any]
    recipe: Recipe
    state: TrialState
    steps: int
    value: float
    seconds: float
    reason: str = ""
    checkpoint: Path | None = None


@dataclass(frozen=True)
class StudyResult:
    """All trials of a study that have ended, in the order of their suggestion."""

    metric: str
    trials: list[TrialOutcome]
    interrupted: bool = False

    @property
    def best(self) -> TrialOutcome:
        """The trial with the highest value among those that reached their last step; the first of equals.

        Raises:
            UserError: no trial reached its last step.
        """
        done = [t for t in self.trials if t.state == "completed"]
        if not done:
            reasons = [t.reason for t in self.trials if t.state == "failed" and t.reason]
            first = f"the first failure is: {reasons[0]}" if reasons else "all were stopped"
            raise UserError(f"no trial of the study ran to its end, so it has no best; {first}")
        return max(done, key=lambda trial: trial.value)


def outcome(plan: StudyPlan, entry: Entry, checkpoint: Path | None = None) -> TrialOutcome:
    """The outcome of a trial that has ended, from its journal entry."""
    assert entry.state is not None
    return TrialOutcome(
        trial_id=entry.name,
        values=dict(entry.values),
        recipe=plan.recipe(entry.values),
        state=entry.state,
        steps=entry.steps,
        value=entry.last.get(plan.metric, math.nan),
        seconds=entry.seconds,
        reason=entry.reason,
        checkpoint=checkpoint,
    )
