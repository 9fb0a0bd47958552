"""The link between Ray Tune and a study's journal, searcher and recorder; it runs in the driver."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray import cloudpickle
from ray.tune.search import Searcher

from siclip_platform.cluster.losses import MEMORY, START, loss, loss_in
from siclip_platform.search.ledger.journal import Entry, Journal, TrialState, trial_name
from siclip_platform.search.ledger.recorder import Recorder
from siclip_platform.search.ledger.retention import Retention, newest_checkpoint
from siclip_platform.search.ledger.reuse import Reuse
from siclip_platform.search.replay import (
    forget_in_scheduler,
    last_of_setting,
    replay_into_scheduler,
    restore_searcher,
    results_of_setting,
    setting_failed,
)
from siclip_platform.search.result import StudyResult, outcome
from siclip_platform.search.study import StudyPlan
from siclip_platform.search.trial.trial import REPLAY, SECONDS

RETRIES = 2
"""How often a trial is run on after its process was lost."""
MEMORY_SECONDS = 30.0
"""The wait before a trial is run on whose process was killed for want of memory, twice as long the second time."""


class Conductor:
    """Everything that happens to trials passes through here and reaches each store once.

    The journal is the truth: after a restart the searcher, the scheduler and MLflow get from it what a kill kept from
    them. The work per result and per ended trial does not grow with the number of trials.

    A trial whose process or machine is lost is run on from its last checkpoint, at most `RETRIES` times. After that
    it has failed, the searcher is not told, and a resumed study runs it again.

    Attributes:
        trials: the Tune trials that have started, by id.
        listed: all Tune trials, with those that have not started.
        stopping: the study is being stopped: what fails from now on stays in flight.
    """

    runs_lost_again = True

    def __init__(self, plan: StudyPlan, recorder: Recorder, rerun: bool = False) -> None:
        self.plan = plan
        self.recorder = recorder
        self.journal = Journal(plan.folder)
        for entry in self.journal.finished() if self.runs_lost_again else ():
            if entry.outside:
                self.journal.reopened(entry.name)
        self.reuse = Reuse(plan, recorder.tracker, recorder.study, rerun)
        self.retention = Retention(plan, self.journal)
        self.names: dict[str, str] = {}
        self.trials: dict[str, Any] = {}
        self.listed: Sequence[Any] = ()
        self.exhausted = False
        self.stopping = False
        self._reused: dict[str, dict[int, str]] = {}
        self._waiting = self.journal.in_flight()
        self._not_before: dict[str, float] = {}
        self._best: float | None = None

    @property
    def remaining(self) -> int:
        return self.plan.trials - self.journal.finished_count

    @property
    def starts(self) -> int:
        """The most Tune trials that the study can still need."""
        return self.remaining + RETRIES * self.plan.trials

    def catch_up(self) -> None:
        """After a restart: report to the searcher, the scheduler and MLflow what they missed."""
        finished = self.journal.finished()
        restore_searcher(self.plan, self.journal)
        for entry in finished:
            if not entry.told:
                self._suggest_again(entry)
                self._tell(entry)
            if self.recorder.open(entry):
                self.recorder.begin(self.plan, entry, {})
                self.recorder.fill(entry)
                self.recorder.end(self.plan, entry)
            self._compare(entry)
        # Before anything new is suggested: that depends on all results.
        for entry in self.journal.in_flight():
            self._suggest_again(entry)
        replay_into_scheduler(self.plan, self.journal)
        self.reuse.add(finished)
        if finished:
            self._show_progress()

    def _suggest_again(self, entry: Entry) -> None:
        """Let the searcher recall a trial of an earlier start, and report the results that it may have missed."""
        self.plan.searcher.suggest(entry.name)
        for step, means in results_of_setting(entry):
            self.plan.searcher.on_trial_result(entry.name, {"step": step, **means})

    def suggest(self, tune_id: str) -> dict[str, Any] | Any:
        """The setting of a trial that was in flight, else a new one; None while there is none now."""
        entry = next((each for each in self._waiting if self._may_start(each)), None)
        if entry is not None:
            self._waiting.remove(entry)
        elif self._waiting:
            return None  # for memory, which a new trial would not have either
        else:
            name = trial_name(len(self.journal.entries))
            if self.exhausted or len(self.journal.entries) >= self.plan.trials:
                return self._nothing_new()
            values = self.plan.searcher.suggest(name)
            if values is None or values == Searcher.FINISHED:
                self.exhausted = values is not None
                return self._nothing_new() if self.exhausted else None
            self.journal.suggested(name, values)
            entry = self.journal.entries[name]
        self.names[tune_id] = entry.name
        self._write_known(tune_id, entry)
        return dict(entry.values)

    def _nothing_new(self) -> str | None:
        # While a trial runs, its process can be lost, and Ray Tune asks for no trial after it was told FINISHED.
        return None if self.journal.in_flight() else str(Searcher.FINISHED)

    def _may_start(self, entry: Entry) -> bool:
        return time.monotonic() >= self._not_before.get(entry.name, 0.0)

    def _write_known(self, tune_id: str, entry: Entry) -> None:
        """Write what the trial need not compute: whole trainings, or the milestones before it was killed."""
        known: dict[str, dict[str, Any]] = {}
        reused: dict[int, str] = {}
        for seed in self.plan.seed_numbers:
            found = self.reuse.find(entry.values, seed)
            if found:
                known[str(seed)] = {"milestones": found.milestones}
                reused[seed] = found.run_id
            elif entry.results:
                known[str(seed)] = self._until_killed(entry, seed)
        self._reused[entry.name] = reused
        self._write_replay(tune_id, known)

    def _write_replay(self, tune_id: str, known: Mapping[str, Any]) -> None:
        folder = self.plan.folder / REPLAY
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{tune_id}.json").write_text(json.dumps(known))

    def _until_killed(self, entry: Entry, seed: int) -> dict[str, Any]:
        # A later checkpoint may exist, of a milestone that a kill kept from the journal; the trial repeats that one.
        checkpoint = newest_checkpoint(self.plan.folder, entry, seed, entry.step)
        milestones = [{"step": step, "metrics": seeds[str(seed)]} for step, _, seeds in entry.results]
        return {"milestones": milestones, "checkpoint": str(checkpoint) if checkpoint else None}

    def started(self, trial: Any) -> None:
        if trial.trial_id in self.trials:
            return
        self.trials[trial.trial_id] = trial
        entry = self.journal.entries[self.names[trial.trial_id]]
        self.journal.started(entry.name, trial.trial_id)
        self.recorder.begin(self.plan, entry, self._reused[entry.name])

    def reported(self, tune_id: str, result: dict[str, Any]) -> None:
        """Record a result once in each store, and remove from it what Ray Tune has no use for."""
        entry = self.journal.entries[self.names[tune_id]]
        step = int(result["step"])
        seeds = result.pop("seeds", {})
        notes = result.pop("notes", {})
        means = metrics_of(result)
        # The recorder is first: what a seed logged between two evaluations is nowhere else, and a trial does not
        # train the steps again that are in the journal.
        self.recorder.result(entry.name, step, means, seeds)
        self.recorder.note(entry.name, notes)
        # A restarted trial replays what the journal has, for MLflow alone: a run keeps a step that it has, and one
        # whose spool was lost is filled again.
        if entry.results and step <= entry.step:
            return
        self.journal.result(entry.name, step, means, {seed: each["metrics"] for seed, each in seeds.items()})
        self._report(entry, step, means)

    def _report(self, entry: Entry, step: int, means: Mapping[str, float]) -> None:
        self.plan.searcher.on_trial_result(entry.name, {"step": step, **means})

    def ended(self, tune_id: str, error: bool) -> None:
        entry = self.journal.entries[self.names[tune_id]]
        if entry.state or (error and self.stopping):
            return
        self.recorder.begin(self.plan, entry, self._reused[entry.name])  # it may have failed before it started
        lost = self._loss(tune_id) if error else None
        if lost:
            self.retention.remove_unfinished(tune_id)
        if lost and entry.losses < RETRIES:
            self._run_on(tune_id, entry, lost)
            return
        state, reason = self._judge(tune_id, entry, error)
        reason = self._lost_again(lost) if lost else reason
        self.journal.ended(entry.name, state, entry.step, entry.last.get(SECONDS, 0.0), reason, bool(lost))
        self.recorder.end(self.plan, entry)
        if lost and self.runs_lost_again:
            self._show_progress()
            return
        self._tell(entry)
        self.retention.ended(entry, self._needed())
        self.reuse.add([entry])
        self._compare(entry)
        self._show_progress()

    def _loss(self, tune_id: str) -> str | None:
        """What the trial lost, in a sentence; None if the trial itself failed."""
        if tune_id in self.trials:
            return _loss(self.trials[tune_id])
        # It has not started, so that Ray Tune has shown it in its list only.
        trial = next((each for each in reversed(self.listed) if each.trial_id == tune_id), None)
        return _loss(trial) or START

    def _lost_again(self, lost: str) -> str:
        then = "; a resumed study runs the trial again" if self.runs_lost_again else ""
        return f"{lost}, as {RETRIES} times before{then}"

    def _run_on(self, tune_id: str, entry: Entry, lost: str) -> None:
        """Let a trial whose process was lost start again from its last checkpoint."""
        self.journal.lost(entry.name, lost)
        self.recorder.note(entry.name, {"losses": str(entry.losses), "loss": lost})
        if lost == MEMORY:
            # The machine needs time to recover: without the wait all trials would be lost within a minute.
            self._not_before[entry.name] = time.monotonic() + MEMORY_SECONDS * entry.losses
        forget_in_scheduler(self.plan, self.trials.get(tune_id))
        self._waiting.append(entry)

    def _needed(self) -> set[str]:
        """Trials whose checkpoints other trials will resume from."""
        return set()

    def _judge(self, tune_id: str, entry: Entry, error: bool) -> tuple[TrialState, str]:
        value = entry.last.get(self.plan.metric, math.nan)
        if error:
            return "failed", _last_line(self.trials.get(tune_id))
        if not math.isfinite(value):
            return "failed", f"{self.plan.metric} is {value} at step {entry.step}"
        if entry.step < self.plan.recipe(entry.values).training.steps:
            return "pruned", f"stopped by {type(self.plan.scheduler).__name__} after step {entry.step}"
        return "completed", ""

    def _tell(self, entry: Entry) -> None:
        """Tell the searcher how a trial ended; it has had the results before."""
        self.plan.searcher.on_trial_complete(entry.name, result=last_of_setting(entry), error=setting_failed(entry))
        self.journal.told(entry.name)

    def _compare(self, entry: Entry) -> None:
        value = entry.last.get(self.plan.metric, math.nan)
        if entry.state == "completed" and (self._best is None or value > self._best):
            self._best = value

    def _show_progress(self) -> None:
        self.recorder.progress(self.journal.finished_count, self.plan.metric, self._best)

    def result(self, interrupted: bool = False) -> StudyResult:
        trials = [
            outcome(self.plan, entry, newest_checkpoint(self.plan.folder, entry, self.plan.seed_numbers[0]))
            for entry in self.journal.finished()
        ]
        return StudyResult(self.plan.metric, trials, interrupted)


def metrics_of(result: Mapping[str, Any]) -> dict[str, float]:
    """Our own metrics in Ray Tune's result: those with a "/" in their names."""
    return {key: float(value) for key, value in result.items() if "/" in key and isinstance(value, int | float)}


def _loss(trial: Any) -> str | None:
    error = _error(trial)
    return loss(error) if error is not None else loss_in(_report(trial))


def _error(trial: Any) -> BaseException | None:
    """The exception that Ray Tune wrote for a trial."""
    # Ray Tune's own method reads the copy in the study's folder, which is made later.
    file = Path(trial.pickled_error_file) if trial is not None and trial.pickled_error_file else None
    return cloudpickle.loads(file.read_bytes()) if file and file.is_file() else None


def _last_line(trial: Any) -> str:
    """The last line of the error that Ray Tune wrote for a trial."""
    lines = _report(trial).strip().splitlines()
    return lines[-1] if lines else "the trial's process ended without a message"


def _report(trial: Any) -> str:
    """What Ray Tune wrote about a trial's error; empty if it wrote nothing."""
    file = Path(trial.error_file) if trial is not None and trial.error_file else None
    return file.read_text(errors="replace") if file and file.is_file() else ""
