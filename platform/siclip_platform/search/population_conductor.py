"""A population under Ray Tune: a Tune trial is the part of a member's training within one generation.

All members have the base recipe's seed, so all of them see the same batches. A member that copies a parent's training
state also gets the schedule that led to it. So the member equals one training by that schedule, and its values, with
``loss.schedule``, are a recipe that computes the same again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher

from siclip_platform.recipes.yaml_file import dump_yaml
from siclip_platform.search.conductor import Conductor
from siclip_platform.search.ledger.journal import Entry, trial_name
from siclip_platform.search.ledger.recorder import Recorder
from siclip_platform.search.ledger.retention import checkpoint_at
from siclip_platform.search.study import StudyPlan
from siclip_platform.search.trial.seed_run import step_of
from siclip_platform.search.trial.trial import CHECKPOINTS
from siclip_platform.storage.atomic import write_text_atomically

RECIPES = "schedules"


class PopulationConductor(Conductor):
    """A conductor whose trials are a population's members.

    A member trains to the end of the generation and waits there for the others. What the end of a generation decides
    is in the journal before anything follows from it. A failed member leaves the population. A part of a generation
    that a kill cut short is trained again, from the checkpoint at its start.
    """

    runs_lost_again = False  # the others went on without it

    def __init__(self, plan: StudyPlan, recorder: Recorder, rerun: bool = False) -> None:
        assert plan.population is not None
        self.population = plan.population
        super().__init__(plan, recorder, rerun)
        self.steps = plan.base.training.steps
        self._until: dict[str, int] = {}
        self._running: set[str] = set()

    @property
    def remaining(self) -> int:
        """The Tune trials still to run if no member fails."""
        starts = [*self._starts(), *[0] * (self.plan.trials - len(self.journal.entries))]
        return sum(max(1, math.ceil((self.steps - step) / self.population.interval)) for step in starts)

    def _starts(self) -> list[int]:
        return [self._start(entry) for entry in self.journal.in_flight()]

    def _start(self, entry: Entry) -> int:
        """The step at which a member's present generation started."""
        return entry.step - entry.step % self.population.interval

    def catch_up(self) -> None:
        super().catch_up()
        self._end_generation_if_due()

    def suggest(self, tune_id: str) -> dict[str, Any] | Any:
        """A member that can train on; None while it must wait for other members."""
        entry = self._next()
        if not isinstance(entry, Entry):
            return entry
        self.names[tune_id] = entry.name
        self._running.add(entry.name)
        self._reused[entry.name] = {}
        self._write_part(tune_id, entry)
        return dict(entry.values)

    def _next(self) -> Entry | Any:
        waiting = [entry for entry in self.journal.in_flight() if entry.name not in self._running]
        if not all(map(self._may_start, waiting)):
            return None
        name = trial_name(len(self.journal.entries))
        if len(self.journal.entries) < self.plan.trials:
            restarted = next((entry for entry in waiting if not self._start(entry)), None)
            if restarted is not None:
                return restarted
            values = self.plan.searcher.suggest(name)
            if values is None or values == Searcher.FINISHED:
                return values
            self.journal.suggested(name, values)
            return self.journal.entries[name]
        # Ray Tune may ask for the next trial before it reports that the last one, whose results are here, ended.
        self._end_generation_if_due()
        now = min(self._starts(), default=None)
        if now is None:
            return Searcher.FINISHED
        return next((entry for entry in waiting if self._start(entry) == now), None)

    def _write_part(self, tune_id: str, entry: Entry) -> None:
        """Write where a member's part of a generation starts and ends, its checkpoints, and how often it saves."""
        start = self._start(entry)
        self._until[tune_id] = min(start + self.population.interval, self.steps)
        # A member that has just copied starts from its parent's checkpoint, later from its own.
        copied = entry.parents[-1] if entry.parents else None
        source = self.journal.entries[copied[1]] if copied and copied[0] == start else entry
        part: dict[str, Any] = {"until": self._until[tune_id], "save_every": self.population.interval}
        for seed in self.plan.seed_numbers if start else ():
            checkpoint = checkpoint_at(self.plan.folder, source, seed, start)
            reached = [(step, seeds[str(seed)]) for step, _, seeds in entry.results if step == start]
            milestones = [{"step": step, "metrics": metrics} for step, metrics in reached]
            part[str(seed)] = {"milestones": milestones, "checkpoint": str(checkpoint) if checkpoint else None}
        self._write_replay(tune_id, part)

    def started(self, trial: Any) -> None:
        super().started(trial)
        entry = self.journal.entries[self.names[trial.trial_id]]
        self.recorder.schedule(self.plan, entry)

    def _report(self, entry: Entry, step: int, means: Mapping[str, float]) -> None:
        if not entry.parents:
            super()._report(entry, step, means)

    def ended(self, tune_id: str, error: bool) -> None:
        entry = self.journal.entries[self.names[tune_id]]
        if not error and entry.step < self._until[tune_id]:
            return  # Ray Tune was stopped
        self._running.discard(entry.name)
        if error or entry.step >= self.steps:
            if not error:
                self.recorder.artifact(entry.name, self._write_recipe(entry))
            super().ended(tune_id, error)
        self._end_generation_if_due()

    def _needed(self) -> set[str]:
        """The parents of members that have not finished the generation after their copy."""
        copied = [(entry, entry.parents[-1]) for entry in self.journal.in_flight() if entry.parents]
        return {parent for entry, (step, parent) in copied if self._start(entry) == step}

    def _end_generation_if_due(self) -> None:
        alive = self.journal.in_flight()
        steps = set(self._starts())
        if len(self.journal.entries) < self.plan.trials or len(steps) != 1 or len(alive) < 2:
            return
        step = steps.pop()
        # After a kill, members can still be at the end of a generation that the journal has.
        if not 0 < step < self.steps or step in self.journal.generations:
            return
        last = {entry.name: entry.last.get(self.plan.metric, math.nan) for entry in alive}
        # A member without a finite score is about to fail, but Ray Tune may not have reported that yet.
        scores = {name: value for name, value in last.items() if math.isfinite(value)}
        settings = {name: self.plan.recipe(self.journal.entries[name].values) for name in scores}
        copies = self.population.end_generation(step, scores, settings)
        changes = {
            name: (copy.parent, copy.values(self.journal.entries[copy.parent].values, step))
            for name, copy in copies.items()
        }
        self.journal.generation_ended(step, changes)
        self._remove_checkpoints_before(step)
        self.recorder.generation(step, len(changes), self.journal.finished_count)

    def _remove_checkpoints_before(self, step: int) -> None:
        """Only training states at the end of the last generation can still be copied."""
        for path in (self.plan.folder / CHECKPOINTS).glob("*/seed-*.step-*.pt"):
            if step_of(path) < step:
                path.unlink(missing_ok=True)

    def _write_recipe(self, entry: Entry) -> Path:
        path = self.plan.folder / RECIPES / f"{entry.name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        recipe = self.plan.recipe(entry.values).model_dump(mode="json")
        write_text_atomically(path, dump_yaml(recipe))
        return path
