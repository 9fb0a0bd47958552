"""A study's trials in MLflow: a run for each trial and, with several seeds, one below it for each of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from siclip_platform.display import Task
from siclip_platform.recipes.recipe import Recipe
from siclip_platform.search.ledger.journal import Entry
from siclip_platform.search.study import StudyPlan, StudyResult
from siclip_platform.storage import AnyPath
from siclip_platform.tracking import TrackedRun, Tracker
from siclip_platform.training.identity import identity

Figures = Mapping[str, Any]


def _weights(recipe: Recipe, step: int, paths: Sequence[str]) -> dict[str, float]:
    now = recipe.loss.at(step)
    return {path: getattr(now, path.removeprefix("loss.")) for path in paths}


class Recorder:
    """Writes trials below ``study`` with ``tags``; every call may be repeated after a restart.

    With one seed a trial's run holds its curves; with several it holds the means, and the runs of kind ``seed``
    hold each seed's. ``task`` shows how far the study is.
    """

    def __init__(
        self, tracker: Tracker, study: TrackedRun, tags: Mapping[str, str], task: Task | None = None
    ) -> None:
        self.tracker = tracker
        self.study = study
        self.tags = dict(tags)
        self.task = task
        self._dataset: tuple[str, str, AnyPath] | None = None
        self._trials: dict[str, TrackedRun] = {}
        self._seeds: dict[tuple[str, str], TrackedRun] = {}

    def dataset(self, name: str, digest: str, folder: AnyPath) -> None:
        """The dataset that each training reads from now on."""
        self._dataset = (name, digest, folder)

    def open(self, entry: Entry) -> bool:
        """Whether the trial's run is not closed for good."""
        return self.tracker.spool.ended(f"{self.study.key}/{entry.name}") in (None, "KILLED")

    def begin(self, plan: StudyPlan, entry: Entry, reused: Mapping[int, str]) -> None:
        """``reused``: of a seed that is not trained again the MLflow run it is taken over from."""
        if entry.name in self._trials:
            return
        several = plan.seeds > 1
        recipe = plan.recipe(entry.values)
        number = {"trial": entry.name, "tune_trial": entry.attempts[-1] if entry.attempts else ""}
        own = {} if several else self._training_tags(plan, recipe, reused.get(plan.seed_numbers[0]))
        tags = self.tags | number | {"recipe_hash": recipe.hash} | dict(plan.tags(entry.values)) | own
        trial = self._start(entry.name, "trial", recipe, tags, self.study, entry.name)
        self._trials[entry.name] = trial
        for seed in plan.seed_numbers if several else ():
            of_seed = plan.recipe(entry.values, seed)
            tags = self.tags | number | {"recipe_hash": of_seed.hash, "seed": str(seed)}
            tags |= self._training_tags(plan, of_seed, reused.get(seed))
            name = f"{entry.name}/seed-{seed}"
            self._seeds[entry.name, str(seed)] = self._start(name, "seed", of_seed, tags, trial, name)

    def _start(
        self, name: str, kind: Any, recipe: Recipe, tags: Mapping[str, str], parent: TrackedRun, key: str
    ) -> TrackedRun:
        run = self.tracker.start(
            name, kind, params=recipe.flat(), tags=tags, parent=parent, key=f"{self.study.key}/{key}"
        )
        if self._dataset and not run.known:
            run.dataset(*self._dataset)
        return run

    def _training_tags(self, plan: StudyPlan, recipe: Recipe, reused: str | None) -> dict[str, str]:
        tags = {} if plan.population is not None else {"identity": identity(recipe)}
        return tags | ({"reused_from": reused} if reused else {})

    def result(self, name: str, step: int, means: Mapping[str, float], seeds: Mapping[str, Figures]) -> None:
        """An evaluation: what each seed logged since the last, and the means."""
        trial = self._trials[name]
        for seed, figures in seeds.items():
            run = self._seeds.get((name, seed), trial)
            for at, metrics in figures["history"]:
                run.log(at, metrics)
            run.log(step, figures["metrics"])
            run.flush()
        trial.log(step, means)
        trial.flush()

    def note(self, name: str, notes: Mapping[str, str]) -> None:
        """What happened to the trial, as tags."""
        if notes:
            self._trials[name].tag(**notes)

    def schedule(self, plan: StudyPlan, entry: Entry) -> None:
        """A member of a population: its weights by step, and in tags the schedule that its training state is of.

        The tag ``schedule`` holds a list of stages: ``step``, ``weights`` by path, and ``parent``, the member whose
        training state was taken over there.
        """
        run = self._trials[entry.name]
        recipe = plan.recipe(entry.values)
        parents = dict(entry.lineage)
        starts = [0, *parents]
        paths = plan.population.space.paths if plan.population else ()
        weights = {step: _weights(recipe, step, paths) for step in starts}
        stages = [{"step": step, "weights": weights[step], "parent": parents.get(step)} for step in starts]
        own = entry.takeovers[-1][0] if entry.takeovers else 0
        run.log(own, {f"schedule/{path}": weight for path, weight in weights[starts[-1]].items()})
        run.flush()
        run.tag(schedule=json.dumps(stages), recipe_hash=recipe.hash)

    def turn(self, step: int, changes: int, finished: int) -> None:
        """How far a population is."""
        if self.task is not None:
            self.task.update(finished, f"after {step} steps {changes} took over from better ones")

    def artifact(self, name: str, path: Path) -> None:
        self._trials[name].artifact(path)

    def end(self, plan: StudyPlan, entry: Entry) -> None:
        """The state, the reason, the rung at which it was stopped, the costs; closes the runs."""
        assert entry.state is not None
        rung = {"rung": str(entry.steps)} if entry.state == "pruned" else {}
        costs = {"cost/steps": float(entry.steps), "cost/seconds": entry.seconds}
        for seed in plan.seed_numbers if plan.seeds > 1 else ():
            figures = entry.results[-1][2].get(str(seed), {}) if entry.results else {}
            seconds = figures.get("cost/seconds", 0.0)
            run = self._seeds[entry.name, str(seed)]
            run.finish(entry.state, costs | {"cost/seconds": seconds}, entry.reason, **rung)
        self._trials[entry.name].finish(entry.state, costs, entry.reason, **rung)

    def interrupt(self) -> None:
        """The study is stopped and will go on: what runs is marked so."""
        for run in (*self._seeds.values(), *self._trials.values()):
            run.finish("interrupted")

    def progress(self, result: StudyResult) -> None:
        if self.task is None:
            return
        done = [trial for trial in result.trials if trial.state == "completed"]
        note = f"best {result.metric} {result.best.value:.3f}" if done else "no trial has finished yet"
        self.task.update(len(result.trials), note)
