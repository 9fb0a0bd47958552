"""Between Ray Tune, the study's journal, its searcher and its recorder; all of it in the driver."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher

from siclip_platform.search.ledger.journal import Entry, Journal, TrialState, trial_name
from siclip_platform.search.ledger.recorder import Recorder
from siclip_platform.search.ledger.retention import newest_checkpoint, sweep
from siclip_platform.search.ledger.reuse import Reuse
from siclip_platform.search.policy.schedulers import replay_into
from siclip_platform.search.study import StudyPlan, StudyResult, outcome
from siclip_platform.search.trial.trial import REPLAY, SECONDS


class Conductor:
    """What happens to trials, in one place: the journal first, then the searcher, MLflow, the disk, the display."""

    def __init__(self, plan: StudyPlan, recorder: Recorder, rerun: bool = False) -> None:
        self.plan = plan
        self.recorder = recorder
        self.journal = Journal(plan.folder)
        self.reuse = Reuse(plan, recorder.tracker, recorder.study, rerun)
        self.names: dict[str, str] = {}
        self.trials: dict[str, Any] = {}
        self._taken_over: dict[str, dict[int, str]] = {}
        self._waiting = self.journal.in_flight()
        self.exhausted = False

    @property
    def remaining(self) -> int:
        return self.plan.trials - len(self.journal.finished())

    def catch_up(self) -> None:
        """After a restart: tell the searcher, the scheduler and MLflow what a kill kept from them."""
        for entry in self.journal.finished():
            if not entry.told:
                self.plan.searcher.suggest(entry.name)
                self._tell(entry)
            if self.recorder.open(entry):
                self.recorder.begin(self.plan, entry, {})
                self.recorder.end(self.plan, entry)
        replay_into(self.plan, self.journal)
        if self.journal.finished():
            self.recorder.progress(self.result())

    def suggest(self, tune_id: str) -> dict[str, Any] | Any:
        """The next setting: of a trial that was in flight, else a new one; None and FINISHED are the searcher's."""
        if self._waiting:
            entry = self._waiting.pop(0)
            self.plan.searcher.suggest(entry.name)
        else:
            name = trial_name(len(self.journal.entries))
            if len(self.journal.entries) >= self.plan.trials:
                return Searcher.FINISHED
            values = self.plan.searcher.suggest(name)
            if values is None or values == Searcher.FINISHED:
                self.exhausted = values is not None
                return values
            self.journal.suggested(name, values)
            entry = self.journal.entries[name]
        self.names[tune_id] = entry.name
        self._leave_known(tune_id, entry)
        return dict(entry.values)

    def _leave_known(self, tune_id: str, entry: Entry) -> None:
        """Write down what the trial need not compute: whole trainings, or those milestones it was killed after."""
        known: dict[str, dict[str, Any]] = {}
        reused: dict[int, str] = {}
        for seed in self.plan.seed_numbers:
            found = self.reuse.find(self.journal, entry.values, seed)
            if found:
                known[str(seed)] = {"milestones": found.milestones}
                reused[seed] = found.run_id
            elif entry.results:
                known[str(seed)] = self._until_killed(entry, seed)
        self._taken_over[entry.name] = reused
        folder = self.plan.folder / REPLAY
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{tune_id}.json").write_text(json.dumps(known))

    def _until_killed(self, entry: Entry, seed: int) -> dict[str, Any]:
        last = entry.results[-1][0]
        checkpoint = newest_checkpoint(self.plan.folder, entry, seed, last)
        milestones = [{"step": step, "metrics": seeds[str(seed)]} for step, _, seeds in entry.results]
        return {"milestones": milestones, "checkpoint": str(checkpoint) if checkpoint else None}

    def started(self, trial: Any) -> None:
        if trial.trial_id in self.trials:
            return
        self.trials[trial.trial_id] = trial
        entry = self.journal.entries[self.names[trial.trial_id]]
        self.journal.started(entry.name, trial.trial_id)
        self.recorder.begin(self.plan, entry, self._taken_over[entry.name])

    def reported(self, tune_id: str, result: dict[str, Any]) -> None:
        """Takes what is not Tune's own out of the result."""
        name, step = self.names[tune_id], int(result["step"])
        seeds = result.pop("seeds", {})
        notes = result.pop("notes", {})
        means = figures(result)
        self.recorder.result(name, step, means, seeds)
        self.recorder.note(name, notes)
        self.journal.result(name, step, means, {seed: each["metrics"] for seed, each in seeds.items()})

    def heard(self, tune_id: str, result: dict[str, Any]) -> None:
        """Pass a result on to the searcher."""
        self.plan.searcher.on_trial_result(self.names[tune_id], result)

    def ended(self, tune_id: str, error: bool) -> None:
        entry = self.journal.entries[self.names[tune_id]]
        if entry.state:
            return
        steps = entry.results[-1][0] if entry.results else 0
        state, reason = self._judge(tune_id, entry, steps, error)
        self.journal.ended(entry.name, state, steps, entry.last.get(SECONDS, 0.0), reason)
        if entry.name not in self._begun():
            self.recorder.begin(self.plan, entry, self._taken_over[entry.name])
        self.recorder.end(self.plan, entry)
        self._tell(entry)
        sweep(self.plan, self.journal, self._needed())
        self.recorder.progress(self.result())

    def _needed(self) -> set[str]:
        """Trials whose checkpoints others are to go on from."""
        return set()

    def _begun(self) -> set[str]:
        return {self.names[tune_id] for tune_id in self.trials}

    def _judge(self, tune_id: str, entry: Entry, steps: int, error: bool) -> tuple[TrialState, str]:
        value = entry.last.get(self.plan.metric, math.nan)
        if error:
            return "failed", _last_line(self.trials.get(tune_id))
        if not math.isfinite(value):
            return "failed", f"{self.plan.metric} is {value} at step {steps}"
        if steps < self.plan.recipe(entry.values).training.steps:
            return "pruned", f"stopped by {type(self.plan.scheduler).__name__} after step {steps}"
        return "completed", ""

    def _tell(self, entry: Entry) -> None:
        for step, means, _ in entry.results:
            self.plan.searcher.on_trial_result(entry.name, {"step": step, **means})
        last = {"step": entry.steps, **entry.last} if entry.results else None
        self.plan.searcher.on_trial_complete(entry.name, result=last, error=entry.state == "failed")
        self.journal.told(entry.name)

    def result(self, interrupted: bool = False) -> StudyResult:
        trials = [
            outcome(self.plan, entry, newest_checkpoint(self.plan.folder, entry, self.plan.seed_numbers[0]))
            for entry in self.journal.finished()
        ]
        return StudyResult(self.plan.metric, self.plan.mode, trials, interrupted)


def figures(result: Mapping[str, Any]) -> dict[str, float]:
    """The figures of ours in a result: those whose name has a part."""
    return {key: float(value) for key, value in result.items() if "/" in key and isinstance(value, int | float)}


def _last_line(trial: Any) -> str:
    """The last line of the error that Tune has written down for a trial."""
    file = Path(trial.error_file) if trial is not None and trial.error_file else None
    lines = file.read_text(errors="replace").strip().splitlines() if file and file.is_file() else []
    return lines[-1] if lines else "the trial's process ended without a message"
