"""A study's trials in MLflow: a run per trial and, with several seeds, one below it per seed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from siclip_platform.display import Task
from siclip_platform.recipes.recipe import Recipe
from siclip_platform.search.ledger.journal import Entry
from siclip_platform.search.study import StudyPlan
from siclip_platform.storage import AnyPath
from siclip_platform.tracking import TrackedRun, Tracker
from siclip_platform.training.identity import identity

SeedReport = Mapping[str, Any]
"""What one seed run reports at an evaluation: its ``metrics``, and the ``history`` logged since the last one."""


def _weights(recipe: Recipe, step: int, paths: Sequence[str]) -> dict[str, float]:
    now = recipe.loss.at(step)
    return {path: getattr(now, path.removeprefix("loss.")) for path in paths}


class Recorder:
    """Records trials below the run of their study; every call may be repeated after a restart.

    With one seed a trial's run has its curves. With several it has the means, and the runs of kind ``seed`` have the
    curves of each.
    """

    def __init__(
        self, tracker: Tracker, study: TrackedRun, tags: Mapping[str, str], task: Task | None = None
    ) -> None:
        """Create a recorder.

        Args:
            tracker: the store.
            study: the study's run.
            tags: tags of every run, without the prefix.
            task: shows the study's progress.
        """
        self.tracker = tracker
        self.study = study
        self.tags = dict(tags)
        self.task = task
        self._dataset: tuple[str, str, AnyPath] | None = None
        self._trials: dict[str, TrackedRun] = {}
        self._seeds: dict[tuple[str, str], TrackedRun] = {}
        self._notes: dict[str, dict[str, str]] = {}

    def dataset(self, name: str, digest: str, folder: AnyPath) -> None:
        """Record this dataset with every run that begins afterwards."""
        self._dataset = (name, digest, folder)

    def open(self, entry: Entry) -> bool:
        """Whether the trial's run can still change: it never ended, or was interrupted."""
        return self.tracker.spool.ended(f"{self.study.key}/{entry.name}") in (None, "KILLED")

    def begin(self, plan: StudyPlan, entry: Entry, reused: Mapping[int, str]) -> None:
        """Open the runs of a trial, once. ``reused``: seed → the MLflow run whose training it reuses."""
        if entry.name in self._trials:
            return
        several = plan.seeds > 1
        recipe = plan.recipe(entry.values)
        number = {"trial": entry.name, "tune_trial": entry.attempts[-1] if entry.attempts else ""}
        own = {} if several else self._training_tags(plan, recipe, reused.get(plan.seed_numbers[0]))
        own |= {} if several else {"seed": str(plan.seed_numbers[0])}
        setting = dict(plan.tags(entry.values))
        tags = self.tags | number | {"recipe_hash": recipe.hash} | setting | own
        again = entry.reopened
        shown = setting.get("setting", entry.name)
        trial = self._start(entry.name, shown, "trial", recipe, tags, self.study, again)
        self._trials[entry.name] = trial
        for seed in plan.seed_numbers if several else ():
            of_seed = plan.recipe(entry.values, seed)
            # With the setting too, so that MLflow can group the seed runs of an ablation by it.
            tags = self.tags | number | {"recipe_hash": of_seed.hash, "seed": str(seed)} | setting
            tags |= self._training_tags(plan, of_seed, reused.get(seed))
            self._seeds[entry.name, str(seed)] = self._start(
                f"{entry.name}/seed-{seed}", f"{shown}/seed-{seed}", "seed", of_seed, tags, trial, again
            )

    def _start(
        self,
        name: str,
        shown: str,
        kind: Any,
        recipe: Recipe,
        tags: Mapping[str, str],
        parent: TrackedRun,
        again: bool,
    ) -> TrackedRun:
        key = f"{self.study.key}/{name}"
        params = recipe.flat()
        run = self.tracker.start(shown, kind, params=params, tags=tags, parent=parent, key=key, reopen=again)
        if again:
            run.tag(reason="")
        # A run that began before a restart has its dataset already.
        if self._dataset and not run.known:
            run.dataset(*self._dataset)
        return run

    def _training_tags(self, plan: StudyPlan, recipe: Recipe, reused: str | None) -> dict[str, str]:
        # A member's values change while it trains, so its run must not be found by identity.
        tags = {} if plan.population is not None else {"identity": identity(recipe)}
        return tags | ({"reused_from": reused} if reused else {})

    def result(self, name: str, step: int, means: Mapping[str, float], seeds: Mapping[str, SeedReport]) -> None:
        """Record an evaluation: what each seed logged since the last one, and the means."""
        trial = self._trials[name]
        for seed, report in seeds.items():
            run = self._seeds.get((name, seed), trial)
            for logged_at, metrics in report["history"]:
                run.log(logged_at, metrics)
            run.log(step, report["metrics"])
            run.flush()
        trial.log(step, means)
        trial.flush()

    def fill(self, entry: Entry) -> None:
        """Record the results that a trial's runs lack; what was logged between them is not in the journal."""
        trial = self._trials[entry.name]
        for step, means, seeds in entry.results:
            for seed, metrics in seeds.items():
                self._seeds.get((entry.name, seed), trial).log(step, metrics)
            trial.log(step, means)

    def note(self, name: str, notes: Mapping[str, str]) -> None:
        """Record events of a trial, such as a retry, as tags. A trial reports them with every result."""
        if notes and self._notes.get(name) != notes:
            self._notes[name] = dict(notes)
            self._trials[name].tag(**notes)

    def schedule(self, plan: StudyPlan, entry: Entry) -> None:
        """Record a population member's weights by step, and in tags the schedule of its present training state.

        The tag ``schedule`` is a list of stages: ``step``, ``weights`` by path, and ``parent``, the member whose
        training state was copied at that step.
        """
        run = self._trials[entry.name]
        recipe = plan.recipe(entry.values)
        parents = dict(entry.lineage)
        starts = [0, *parents]
        paths = plan.population.space.paths if plan.population else ()
        weights = {step: _weights(recipe, step, paths) for step in starts}
        stages = [{"step": step, "weights": weights[step], "parent": parents.get(step)} for step in starts]
        own = entry.parents[-1][0] if entry.parents else 0
        run.log(own, {f"schedule/{path}": weight for path, weight in weights[starts[-1]].items()})
        run.flush()
        run.tag(schedule=json.dumps(stages), recipe_hash=recipe.hash)

    def generation(self, step: int, copies: int, finished: int) -> None:
        """Show a population's progress: ``copies`` members copied a better one after ``step`` steps."""
        if self.task is not None:
            self.task.update(finished, f"after {step} steps {copies} copied better ones")

    def artifact(self, name: str, path: Path) -> None:
        self._trials[name].artifact(path)

    def end(self, plan: StudyPlan, entry: Entry) -> None:
        """Record the state, the reason, the last step of a pruned trial and the costs; close the trial's runs."""
        assert entry.state is not None
        rung = {"rung": str(entry.steps)} if entry.state == "pruned" else {}
        costs = {"cost/steps": float(entry.steps), "cost/seconds": entry.seconds}
        for seed in plan.seed_numbers if plan.seeds > 1 else ():
            metrics = entry.results[-1][2].get(str(seed), {}) if entry.results else {}
            seconds = metrics.get("cost/seconds", 0.0)
            run = self._seeds[entry.name, str(seed)]
            run.finish(entry.state, costs | {"cost/seconds": seconds}, entry.reason, **rung)
        self._trials[entry.name].finish(entry.state, costs, entry.reason, **rung)

    def interrupt(self) -> None:
        """Mark the runs of unfinished trials: the study was stopped and can be resumed."""
        for run in (*self._seeds.values(), *self._trials.values()):
            run.finish("interrupted")

    def progress(self, finished: int, metric: str, best: float | None) -> None:
        """Show how many trials have ended, and the best value of those that completed."""
        if self.task is not None:
            note = "no trial has completed yet" if best is None else f"best {metric} {best:.3f}"
            self.task.update(finished, note)
