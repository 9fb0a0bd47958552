"""A population under Ray Tune: what Tune runs are the stretches of its members' trainings between two turns.

All members have the base recipe's seed, so all see the same batches. A member that takes over a training state
together with the schedule that led to it is therefore what one training by that schedule would be: its values, with
``loss.schedule``, are a recipe that computes the same again.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import yaml
from ray.tune.search import Searcher

from siclip_platform.search.conductor import Conductor
from siclip_platform.search.ledger.journal import Entry, trial_name
from siclip_platform.search.ledger.recorder import Recorder
from siclip_platform.search.ledger.retention import checkpoint_at
from siclip_platform.search.study import StudyPlan
from siclip_platform.search.trial.seed_run import step_of
from siclip_platform.search.trial.trial import CHECKPOINTS, REPLAY
from siclip_platform.storage.atomic import write_text_atomically

RECIPES = "schedules"


class PopulationConductor(Conductor):
    """A conductor whose trials are members of a population: each trains to the next turn and waits for the others.

    What a turn decides is in the journal before anything follows from it. A member that fails is out. A stretch that
    a kill cut short is trained again, from the checkpoint that it began with.
    """

    def __init__(self, plan: StudyPlan, recorder: Recorder, rerun: bool = False) -> None:
        assert plan.population is not None
        self.population = plan.population
        super().__init__(plan, recorder, rerun)
        self.steps = plan.base.training.steps
        self._until: dict[str, int] = {}
        self._running: set[str] = set()

    @property
    def remaining(self) -> int:
        """Stretches that are still to be trained, if no member fails."""
        at = [*self._at(), *[0] * (self.plan.trials - len(self.journal.entries))]
        return sum(max(1, math.ceil((self.steps - step) / self.population.interval)) for step in at)

    def _at(self) -> list[int]:
        return [self._turn_of(entry) for entry in self.journal.in_flight()]

    def _turn_of(self, entry: Entry) -> int:
        """The last turn, in steps, that a member has reached."""
        reached = entry.results[-1][0] if entry.results else 0
        return reached - reached % self.population.interval

    def catch_up(self) -> None:
        super().catch_up()
        self._turn_when_due()

    def suggest(self, tune_id: str) -> dict[str, Any] | Any:
        """The next stretch of a member; None while the others have not come to the turn."""
        entry = self._next()
        if not isinstance(entry, Entry):
            return entry
        self.names[tune_id] = entry.name
        self._running.add(entry.name)
        self._taken_over[entry.name] = {}
        self._leave_stretch(tune_id, entry)
        return dict(entry.values)

    def _next(self) -> Entry | Any:
        waiting = [entry for entry in self.journal.in_flight() if entry.name not in self._running]
        name = trial_name(len(self.journal.entries))
        if len(self.journal.entries) < self.plan.trials:
            begins = next((entry for entry in waiting if not self._turn_of(entry)), None)
            if begins is not None:
                self.plan.searcher.suggest(begins.name)
                return begins
            values = self.plan.searcher.suggest(name)
            if values is None or values == Searcher.FINISHED:
                return values
            self.journal.suggested(name, values)
            return self.journal.entries[name]
        self._turn_when_due()  # a member's last figures may be here before Tune says that it ended
        now = min(self._at(), default=None)
        if now is None:
            return Searcher.FINISHED
        return next((entry for entry in waiting if self._turn_of(entry) == now), None)

    def _leave_stretch(self, tune_id: str, entry: Entry) -> None:
        """Write down where a stretch begins, with which training states, where it ends, and how often it saves."""
        begin = self._turn_of(entry)
        self._until[tune_id] = min(begin + self.population.interval, self.steps)
        taken = entry.takeovers[-1] if entry.takeovers else None
        source = self.journal.entries[taken[1]] if taken and taken[0] == begin else entry
        stretch: dict[str, Any] = {"until": self._until[tune_id], "save_every": self.population.interval}
        for seed in self.plan.seed_numbers if begin else ():
            checkpoint = checkpoint_at(self.plan.folder, source, seed, begin)
            reached = [(step, seeds[str(seed)]) for step, _, seeds in entry.results if step == begin]
            milestones = [{"step": step, "metrics": metrics} for step, metrics in reached]
            stretch[str(seed)] = {"milestones": milestones, "checkpoint": str(checkpoint) if checkpoint else None}
        folder = self.plan.folder / REPLAY
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{tune_id}.json").write_text(json.dumps(stretch))

    def started(self, trial: Any) -> None:
        super().started(trial)
        entry = self.journal.entries[self.names[trial.trial_id]]
        self.recorder.schedule(self.plan, entry)

    def heard(self, tune_id: str, result: dict[str, Any]) -> None:
        """Optuna hears of a member as long as it trains with the setting that it was given."""
        if not self.journal.entries[self.names[tune_id]].takeovers:
            super().heard(tune_id, result)

    def ended(self, tune_id: str, error: bool) -> None:
        entry = self.journal.entries[self.names[tune_id]]
        reached = entry.results[-1][0] if entry.results else 0
        if not error and reached < self._until[tune_id]:
            return  # Tune was stopped
        self._running.discard(entry.name)
        if error or reached >= self.steps:
            if not error:
                self.recorder.artifact(entry.name, self._write_recipe(entry))
            super().ended(tune_id, error)
        self._turn_when_due()

    def _needed(self) -> set[str]:
        """The parents of those that have not come to the turn after their takeover."""
        taken = [(entry, entry.takeovers[-1]) for entry in self.journal.in_flight() if entry.takeovers]
        return {parent for entry, (step, parent) in taken if self._turn_of(entry) == step}

    def _turn_when_due(self) -> None:
        alive = self.journal.in_flight()
        steps = set(self._at())
        if len(self.journal.entries) < self.plan.trials or len(steps) != 1 or len(alive) < 2:
            return
        step = steps.pop()
        if not 0 < step < self.steps or step in self.journal.turns:
            return
        last = {entry.name: entry.last.get(self.plan.metric, math.nan) for entry in alive}
        scores = {name: value for name, value in last.items() if math.isfinite(value)}  # the others are about to fail
        settings = {name: self.plan.recipe(self.journal.entries[name].values) for name in scores}
        takeovers = self.population.turn(step, scores, settings)
        changes = {
            name: (takeover.parent, takeover.values(self.journal.entries[takeover.parent].values, step))
            for name, takeover in takeovers.items()
        }
        self.journal.turned(step, changes)
        self._forget_before(step)
        self.recorder.turn(step, len(changes), len(self.journal.finished()))

    def _forget_before(self, step: int) -> None:
        """Only the training states of the last turn can be taken over."""
        for path in (self.plan.folder / CHECKPOINTS).glob("*/seed-*.step-*.pt"):
            if step_of(path) < step:
                path.unlink(missing_ok=True)

    def _write_recipe(self, entry: Entry) -> Path:
        path = self.plan.folder / RECIPES / f"{entry.name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        recipe = self.plan.recipe(entry.values).model_dump(mode="json")
        write_text_atomically(path, yaml.safe_dump(recipe, sort_keys=False))
        return path

    def _tell(self, entry: Entry) -> None:
        """Of a member that took over, Optuna is told what its own setting came to before."""
        until = entry.takeovers[0][0] if entry.takeovers else self.steps
        own = [(step, means) for step, means, _ in entry.results if step <= until]
        for step, means in own:
            self.plan.searcher.on_trial_result(entry.name, {"step": step, **means})
        last = {"step": own[-1][0], **own[-1][1]} if own else None
        error = entry.state == "failed" and not entry.takeovers
        self.plan.searcher.on_trial_complete(entry.name, result=last, error=error)
        self.journal.told(entry.name)
