"""The parts of a WIKD search, as `jobs/tune_wikd.py` tells them: dataset, teacher, study, best and control."""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from siclip_platform.datasets.manifest import Dataset, open_dataset
from siclip_platform.display import Display, Task
from siclip_platform.evaluation import evaluate_checkpoint
from siclip_platform.recipes.recipe import Recipe
from siclip_platform.search.ledger.journal import FILE as JOURNAL
from siclip_platform.search.study import StudyPlan, StudyResult
from siclip_platform.spaces.definition import SearchSpace
from siclip_platform.spaces.load import space_text
from siclip_platform.storage import copy_file
from siclip_platform.storage.atomic import write_text_atomically
from siclip_platform.studies.final_runs import Trained
from siclip_platform.studies.options import WORKER_CPUS, Options, command_line
from siclip_platform.studies.study_file import FILE, SPACE, StudyFile, read_study
from siclip_platform.studies.timeline import Timeline
from siclip_platform.tracking import RunKind, TrackedRun, Tracker
from siclip_platform.tracking.store import without_password
from siclip_platform.training.identity import weights_hash
from siclip_platform.training.ray_train import run_with_ray_train

LOGGED_MODELS = ("best", "train")


class Stopped(KeyboardInterrupt):
    """The study was stopped by Ctrl-C and can be gone on with."""


@dataclass(frozen=True)
class Finished:
    """A model trained under Ray Train and measured on the test split."""

    checkpoint: Path
    metrics: dict[str, float]


class Experiment:
    """One search in one output folder: its tracker, its study run, its display."""

    def __init__(self, options: Options, display: Display, tracker: Tracker, name: str) -> None:
        self.options = options
        self.display = display
        self.tracker = tracker
        self.name = name
        self.folder = options.out / name
        self.key = read_study(self.folder).key if options.resume else uuid.uuid4().hex
        self.tags: dict[str, str] = {"study": name}
        self.study_run: TrackedRun | None = None
        self.timeline = Timeline()
        self._trained = Trained(self.folder)
        self._dataset: Dataset | None = None

    def dataset(self) -> Dataset:
        """The dataset named in the options, or digit scenes in the output folder, built if missing."""
        folder = self.options.dataset_folder
        if self.options.data is None:
            from siclip_platform.datasets.digits.digits import DigitScenesConfig, build_digit_scenes

            with self.timeline.span("dataset"), self.display.task("digit scenes") as task:
                build_digit_scenes(self.options.built_folder.resolve(), DigitScenesConfig(), task.progress)
        self._dataset = open_dataset(folder)
        self.tags["dataset_hash"] = self._dataset.hash
        return self._dataset

    def begin_study(self, space: SearchSpace, base: Recipe, **tags: str) -> None:
        """Open the MLflow run of a search, the parent of all that follow.

        Raises:
            UserError: the sampler or the scheduler cannot work on the space with these options.
        """
        from siclip_platform.search.policy.defaults import check_strategy, rungs_of

        options = self.options
        check_strategy(space, base, trials=options.trials, seed=options.seed, backend=options.backend)
        params = {
            "study.space": space.name,
            "study.space_hash": space.hash,
            "study.metric": space.metric,
            "study.mode": space.mode,
            "study.sampler": space.sampler.name,
            "study.scheduler": space.scheduler.name,
            "study.trials": options.trials,
            "study.seed": options.seed,
            "study.seeds": options.seeds,
        }
        searched, budgets = json.dumps(space.paths), json.dumps(rungs_of(space, base))
        if not options.resume:
            self.keep(base)
        self.begin(base, params, {"study_type": "search", "searched": searched, "rungs": budgets, **tags})

    def begin(self, base: Recipe, params: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Open the MLflow run of any study, or the one that was begun; ``tags`` without the prefix."""
        tags = {**self.tags, **tags, "command": command_line(sys.argv)}
        self.study_run = self.tracker.start(
            self.name, "study", params={**params, **base.flat()}, tags=tags, key=self.key, reopen=True
        )
        self._log_dataset(self.study_run)
        if self._dataset is not None:
            size = sum(shard.bytes for split in self._dataset.manifest.splits.values() for shard in split)
            self.study_run.log(0, {"cost/dataset_bytes": float(size)})

    def _log_dataset(self, run: TrackedRun) -> None:
        if self._dataset is not None and not run.known:
            run.dataset(self._dataset.manifest.name, self._dataset.hash, self._dataset.folder)

    def keep(self, base: Recipe, kind: str = "search", **more: Any) -> None:
        """Write down in the study's folder, and where its checkpoints go, how it was begun: for ``--resume``."""
        uri = without_password(self.tracker.uri)
        self._write(
            StudyFile.of(self.options, name=self.name, kind=kind, key=self.key, base=base, uri=uri, more=more)
        )

    def _write(self, study: StudyFile) -> None:
        study.write(self.folder)
        if self.options.checkpoints:
            kept = self.options.checkpoints / self.name
            if isinstance(kept, Path):
                kept.mkdir(parents=True, exist_ok=True)
            copy_file(self.folder / FILE, kept / FILE)

    def search(self, space: SearchSpace, base: Recipe) -> StudyResult:
        """Run a search around ``base``, which is the first trial; trials share the machine as the planner says."""
        from siclip_platform.search.policy.defaults import population_of, scheduler_of, searcher_of

        trials, seed, backend = self.options.trials, self.options.seed, self.options.backend
        population = population_of(space, base, trials=trials, seed=seed, backend=backend)
        if self.options.resume and (self.folder / JOURNAL).is_file():
            study = read_study(self.folder)
            study.check_same(base, trials, grows=population is None)
            if trials > study.trials:  # for a later --resume
                self._write(study.model_copy(update={"trials": trials}))
        else:
            self.keep(base)
            (self.folder / SPACE).write_text(space_text(self.options.space))
        return self.study(
            base, metric=space.metric, mode=space.mode, trials=trials, population=population,
            scheduler=scheduler_of(space, base, seed),
            searcher=searcher_of(space, base, name=self.name, trials=trials, seed=seed, folder=self.folder),
        )  # fmt: skip

    def study(self, base: Recipe, *, title: str | None = None, **plan: Any) -> StudyResult:
        """Run a study; ``plan`` are fields of `StudyPlan` that the options do not give.

        Raises:
            Stopped: Ctrl-C; the study can be gone on with.
            UserError: see `siclip_platform.cluster.resources.lay_out` and `run_study`.
        """
        from siclip_platform.search.ledger.recorder import Recorder
        from siclip_platform.search.tune_run import run_study
        from siclip_platform.tracking.system import system_metrics

        assert self.study_run is not None
        concurrent, resources = self._resources(base)
        whole = StudyPlan(
            name=self.name, folder=self.folder, base=base, seeds=self.options.seeds, concurrent=concurrent,
            resources=resources, backend=self.options.backend, disk_budget=self.options.disk_budget, **plan,
        )  # fmt: skip
        tags = self.tags | ({"teacher_hash": weights_hash(base.teacher)} if base.teacher else {})
        title = title or f"{whole.trials} trials"
        with self.timeline.span(title), self.display.task(title, total=whole.trials) as task:
            recorder = Recorder(self.tracker, self.study_run, tags, task)
            if self._dataset is not None:
                recorder.dataset(self._dataset.manifest.name, self._dataset.hash, self._dataset.folder)
            with system_metrics(self.study_run):
                result = run_study(whole, recorder, rerun=self.options.rerun)
        if result.interrupted:
            raise Stopped
        self._count(result)
        return result

    def _resources(self, base: Recipe) -> tuple[int, dict[str, float]]:
        from siclip_platform.cluster.resources import lay_out, machine_of_ray
        from siclip_platform.training.memory import measure_peak

        machine = machine_of_ray(own=not self.options.joins)
        peak = measure_peak(base) if machine.gpus >= 1 else None
        layout = lay_out(
            machine, requested=self.options.concurrent, seeds=self.options.seeds, worker_cpus=WORKER_CPUS,
            peak_bytes=peak, backend=self.options.backend,
        )  # fmt: skip
        self.display.say(layout.reason)
        return layout.concurrent, layout.resources

    def _count(self, result: StudyResult) -> None:
        assert self.study_run is not None
        states = [trial.state for trial in result.trials]
        counts = {f"study/{state}": float(states.count(state)) for state in ("completed", "pruned", "failed")}
        self.study_run.log(0, {**counts, f"study/best/{result.metric}": result.best.value})

    def log_best(self, result: StudyResult) -> None:
        """The best trial's own checkpoint as the study's logged model."""
        assert self.study_run is not None
        best = result.best
        if best.checkpoint is not None:
            self.study_run.model(best.checkpoint, "best", of=best.recipe.hash, register=self.options.register)
        elif self.options.register:
            self.display.say(f"{best.trial_id} was taken over and has no checkpoint here: nothing is registered")
        self.log_summary(best.checkpoint)

    def train(self, recipes: Mapping[Any, Recipe], **tags: str) -> dict[Any, Finished]:
        """Train these under Ray Train, as many at a time as the options say, and measure each on the test split.

        What an earlier start of this study finished with the same recipe is taken as it is. A name is a kind, or one
        with ``-`` and more.
        """
        with self.timeline.span(" and ".join(recipes)):
            finished = self.train_all({name: (recipe, tags) for name, recipe in recipes.items()})
        if "best" in finished:
            self.log_summary(finished["best"].checkpoint)
        return finished

    def train_all(self, jobs: Mapping[Any, tuple[Recipe, Mapping[str, str]]]) -> dict[Any, Finished]:
        """`train` with tags for each."""
        with ThreadPoolExecutor(max_workers=self.options.trainings) as pool:
            running = {name: pool.submit(self._train, name, *job) for name, job in jobs.items()}
            try:
                return {name: job.result() for name, job in running.items()}
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)  # those that wait for their turn never start
                raise

    def log_summary(self, checkpoint: Path | None) -> None:
        """What the data are and what a model finds in them, for a report that has the store alone."""
        from siclip_platform.datasets.tools.summary import summarize_dataset, write_summary

        if self.study_run is not None and self._dataset is not None and "test" in self._dataset.split_names:
            summary = summarize_dataset(self._dataset, checkpoint=checkpoint)
            self.study_run.artifact(write_summary(summary, self.folder))

    def _train(self, name: str, recipe: Recipe, tags: Mapping[str, str]) -> Finished:
        """What the name stood for before, with another recipe, stays and is marked."""
        stem = self._trained.stem(name, recipe)
        finished = self._known(stem) or self._train_anew(name, stem, recipe, tags)
        others = self._trained.superseded(name)
        for other in (*others, *([stem] if others else [])):
            self.tracker.supersede(f"{self.key}/{other}", "" if other == stem else f"{self.key}/{stem}")
        return finished

    def _known(self, stem: str) -> Finished | None:
        kept = self.folder / f"{stem}.json"
        if self.tracker.spool.ended(f"{self.key}/{stem}") != "FINISHED" or not kept.is_file():
            return None
        return Finished(self.folder / f"{stem}.pt", json.loads(kept.read_text()))

    def _train_anew(self, name: str, stem: str, recipe: Recipe, tags: Mapping[str, str]) -> Finished:
        key, kept = f"{self.key}/{stem}", self.folder / f"{stem}.json"
        kind = cast(RunKind, name.partition("-")[0])
        all_tags = {**self.tags, **tags, "recipe_hash": recipe.hash}
        run = self.tracker.start(
            name, kind, params=recipe.flat(), tags=all_tags, parent=self.study_run, key=key, reopen=True
        )
        self._log_dataset(run)
        try:
            finished = self._under_ray_train(stem, recipe, run)
            write_text_atomically(kept, json.dumps(finished.metrics))
            run.artifact(finished.checkpoint)
            if kind in LOGGED_MODELS:
                run.model(finished.checkpoint, kind, register=self.options.register)
            run.finish("completed", {k: v for k, v in finished.metrics.items() if "/" in k})
        except KeyboardInterrupt:
            run.finish("interrupted")
            raise
        except BaseException as error:
            run.finish("failed", reason=f"{type(error).__name__}: {error}")
            raise
        return finished

    def _under_ray_train(self, name: str, recipe: Recipe, run: TrackedRun) -> Finished:
        kept = self.options.checkpoints / self.name if self.options.checkpoints else None
        with self.display.task(name, total=recipe.training.steps) as task:
            trained = run_with_ray_train(
                recipe, name=name, storage=self.folder / "train", log=_both(run, task), worker_cpus=WORKER_CPUS,
                workers=self.options.workers, checkpoints=kept / "train" if kept else None,
            )  # fmt: skip
            if kept:
                copy_file(trained.checkpoint, kept / f"{name}.pt")
        metrics = trained.metrics | evaluate_checkpoint(trained.checkpoint, recipe.data.path, "test")
        return Finished(trained.checkpoint, metrics)


def _both(run: TrackedRun, task: Task) -> Any:
    def log(step: int, metrics: Mapping[str, float]) -> None:
        run.log(step, metrics)
        loss = metrics.get("train/loss")
        task.update(step, f"loss {loss:.3f}" if loss is not None else None)

    return log
