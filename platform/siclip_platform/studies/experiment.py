"""A study in one output folder: its dataset, its search, and the trainings around the search."""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from siclip.errors import UserError
from siclip_platform.datasets.epochs import length
from siclip_platform.datasets.manifest import Dataset, open_dataset
from siclip_platform.display import Display
from siclip_platform.recipes.recipe import Recipe
from siclip_platform.recipes.yaml_file import dump_yaml
from siclip_platform.search.result import StudyResult
from siclip_platform.search.study import StudyPlan
from siclip_platform.spaces.ablation import ablation_text
from siclip_platform.spaces.definition import SearchSpace
from siclip_platform.spaces.load import space_text
from siclip_platform.storage.atomic import remove_abandoned, write_text_atomically
from siclip_platform.studies.command_line import command_line
from siclip_platform.studies.final_runs import FinalRuns, Finished, Jobs, final_split
from siclip_platform.studies.options import WORKER_CPUS, Options
from siclip_platform.studies.study_file import ABLATION, SPACE, StudyFile, StudyKind, read_study
from siclip_platform.studies.timeline import Timeline
from siclip_platform.tracking import TrackedRun, Tracker
from siclip_platform.tracking.address import without_password
from siclip_platform.training.identity import weights_hash

LEADING = "leading.yaml"
"""The recipe of the leading trial, in the study's folder."""


class Stopped(KeyboardInterrupt):
    """Ctrl-C stopped the study, which can be resumed."""


class Experiment:
    """One study in one output folder: its tracker, its MLflow run, its display."""

    def __init__(self, options: Options, display: Display, tracker: Tracker, name: str) -> None:
        self.options = options
        self.display = display
        self.tracker = tracker
        self.name = name
        self.folder = options.out / name
        self.key = read_study(self.folder).key if options.resume else uuid.uuid4().hex
        if options.resume:
            # The tracker's lock is held: no other process works in this folder.
            freed = remove_abandoned(self.folder)
            if freed:
                display.say(f"{freed / 1e6:,.1f} MB of temporary files that were left by a kill are removed")
        self.tags: dict[str, str] = {"study": name}
        self.study_run: TrackedRun | None = None
        self.timeline = Timeline()
        self.earlier: tuple[Recipe, ...] = ()
        self._dataset: Dataset | None = None

    def dataset(self) -> Dataset:
        """The dataset that the options name, or digit scenes in the output folder, built if missing."""
        if self.options.data is None:
            from siclip_platform.datasets.digits.digits import DigitScenesConfig, build_digit_scenes

            with self.timeline.span("dataset"), self.display.task("digit scenes") as task:
                build_digit_scenes(self.options.built_folder, DigitScenesConfig(), task.progress)
        self._dataset = open_dataset(self.options.dataset_folder)
        self.tags["dataset_hash"] = self._dataset.hash
        if self.final_split != "test":
            self.display.say(
                f"dataset {self._dataset.folder} has no test split: finished models are measured on its "
                f"{self.final_split} split, by which settings are chosen too, so such figures are optimistic"
            )
        return self._dataset

    @property
    def final_split(self) -> str:
        """The split on which finished models are measured; its name is the prefix of their metrics."""
        assert self._dataset is not None
        return final_split(self._dataset)

    def describe(
        self, kind: StudyKind, base: Recipe, teaching: Recipe | None = None, earlier: tuple[Recipe, ...] = ()
    ) -> None:
        """Write the study's file, by which ``--resume`` finds it; a resumed study stores the options that changed.

        Args:
            base: the recipe that the study is about.
            teaching: the recipe of a teacher that the study trains.
            earlier: see `StudyFile`; `train` then begins with a state of one of these recipes.
        """
        self.earlier = earlier
        self.display.say(length(base))
        options = self.options.model_copy(update={"tracking_uri": without_password(self.tracker.uri)})
        if options.resume:
            before = read_study(self.folder)
            trials = max(options.trials, before.options.trials)  # fewer only end this process earlier
            options = options.model_copy(update={"trials": trials})
            before.model_copy(update={"options": options, "base": base, "earlier": earlier}).write()
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        if kind in ("search", "demo"):
            write_text_atomically(self.folder / SPACE, space_text(options.space))
        if options.ablation:
            write_text_atomically(self.folder / ABLATION, ablation_text(options.ablation))
        StudyFile(name=self.name, kind=kind, key=self.key, base=base, teaching=teaching, options=options).write()

    def begin_search(self, kind: StudyKind, space: SearchSpace, base: Recipe, teaching: Recipe | None = None) -> None:
        """Describe a search and open its MLflow run, the parent of all that follow.

        Raises:
            UserError: the sampler or the scheduler cannot work on the space with these options, or a population was
                resumed with another size.
        """
        from siclip_platform.search.policy.defaults import check_strategy, rungs_of

        options = self.options
        check_strategy(space, base, trials=options.trials, seed=options.seed, backend=options.backend)
        self._check_population(space)
        self.describe(kind, base, teaching)
        params = {
            "study.space": space.name,
            "study.space_hash": space.hash,
            "study.metric": space.metric,
            "study.mode": "max",
            "study.sampler": space.sampler.name,
            "study.scheduler": space.scheduler.name,
            "study.trials": options.trials,
            "study.seed": options.seed,
            "study.seeds": options.seeds,
        }
        searched, budgets = json.dumps(space.paths), json.dumps(rungs_of(space, base))
        self.begin(base, params, {"study_type": "search", "searched": searched, "rungs": budgets})

    def _check_population(self, space: SearchSpace) -> None:
        if not self.options.resume or space.scheduler.name != "pbt":
            return
        size = read_study(self.folder).options.trials
        if self.options.trials != size:
            raise UserError(
                f"study {self.name} is a population of {size}, whose members train side by side: resume it without "
                f"--trials {self.options.trials}, or begin a new study"
            )

    def begin(self, base: Recipe, params: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Open the MLflow run of a study, or open it again; ``tags`` are without the prefix."""
        tags = {**self.tags, **tags, "command": command_line(sys.argv)}
        self.study_run = self.tracker.start(
            self.name, "study", params={**params, **base.flat()}, tags=tags, key=self.key, reopen=True
        )
        if self._dataset is not None:
            dataset = self._dataset
            if not self.study_run.known:
                self.study_run.dataset(dataset.manifest.name, dataset.hash, dataset.folder)
            size = sum(shard.bytes for split in dataset.manifest.splits.values() for shard in split)
            self.study_run.log(0, {"cost/dataset_bytes": float(size)})

    def search(self, space: SearchSpace, base: Recipe) -> StudyResult:
        """Search around ``base``, which is the first trial."""
        from siclip_platform.search.policy.defaults import population_of, scheduler_of, searcher_of

        options = self.options
        trials, seed = options.trials, options.seed
        return self.study(
            base,
            metric=space.metric,
            trials=trials,
            population=population_of(space, base, trials=trials, seed=seed, backend=options.backend),
            scheduler=scheduler_of(space, base, seed),
            searcher=searcher_of(space, base, name=self.name, trials=trials, seed=seed, folder=self.folder),
        )

    def study(self, base: Recipe, *, title: str | None = None, **plan: Any) -> StudyResult:
        """Run trials around ``base``; ``plan`` are the fields of `StudyPlan` that the options do not give.

        Raises:
            Stopped: by Ctrl-C; the study can be resumed.
            UserError: see `siclip_platform.cluster.resources.lay_out` and `run_study`.
        """
        from siclip_platform.search.ledger.recorder import Recorder
        from siclip_platform.search.tune_run import run_study
        from siclip_platform.tracking.system import system_metrics

        assert self.study_run is not None
        concurrent, resources = self._resources(base)
        whole = StudyPlan(
            name=self.name,
            folder=self.folder,
            base=base,
            seeds=self.options.seeds,
            concurrent=concurrent,
            resources=resources,
            backend=self.options.backend,
            disk_budget=self.options.disk_budget,
            **plan,
        )
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
        self._write_leading(result)
        return result

    def _write_leading(self, result: StudyResult) -> None:
        """Write the recipe of the leading trial, log it, and name its file in the study's run."""
        assert self.study_run is not None
        path = self.folder / LEADING
        write_text_atomically(path, dump_yaml(result.best.recipe.model_dump(mode="json")))
        self.study_run.artifact(path)
        self.study_run.tag(leading_recipe=path)

    def _resources(self, base: Recipe) -> tuple[int, dict[str, float]]:
        from siclip_platform.cluster.resources import lay_out, machine_of_ray
        from siclip_platform.training.memory import measure_peak

        machine = machine_of_ray(own=not self.options.joins)
        layout = lay_out(
            machine,
            requested=self.options.concurrent,
            seeds=self.options.seeds,
            worker_cpus=WORKER_CPUS,
            peak_bytes=measure_peak(base) if machine.gpus >= 1 else None,
            backend=self.options.backend,
            data_tasks=base.data.reader == "ray",
        )
        self.display.say(layout.reason)
        return layout.concurrent, layout.resources

    def _count(self, result: StudyResult) -> None:
        assert self.study_run is not None
        states = [trial.state for trial in result.trials]
        counts = {f"study/{state}": float(states.count(state)) for state in ("completed", "pruned", "failed")}
        # before a study without a best is refused
        self.study_run.log(0, counts)
        self.study_run.log(0, {f"study/best/{result.metric}": result.best.value})

    def log_best(self, result: StudyResult) -> None:
        """Log the best trial's checkpoint as the study's model."""
        assert self.study_run is not None
        best = result.best
        if best.checkpoint is not None:
            self.study_run.model(best.checkpoint, "best", of=best.recipe.hash, register=self.options.register_as)
        elif self.options.register_as:
            self.display.say(f"{best.trial_id} was reused and has no checkpoint here: nothing is registered")
        self.log_summary(best.checkpoint)

    def train(self, recipes: Mapping[Any, Recipe], **tags: str) -> dict[Any, Finished]:
        """Train the recipes with Ray Train and measure each on the `final_split`; see `FinalRuns.train_all`.

        Args:
            recipes: by name; a name is a kind of run, or starts with one and ``-``.
            tags: MLflow tags of every run, without the prefix.
        """
        with self.timeline.span(" and ".join(recipes)):
            finished = self.train_all({name: (recipe, tags) for name, recipe in recipes.items()})
        if "best" in finished:
            self.log_summary(finished["best"].checkpoint)
        return finished

    def train_all(self, jobs: Jobs) -> dict[Any, Finished]:
        """As `train`, with tags for each recipe."""
        runs = FinalRuns(
            options=self.options,
            display=self.display,
            tracker=self.tracker,
            folder=self.folder,
            key=self.key,
            tags=self.tags,
            study_run=self.study_run,
            dataset=self._dataset,
            earlier=self.earlier,
        )
        return runs.train_all(jobs)

    def log_summary(self, checkpoint: Path | None) -> None:
        """Log examples of the data, with what a model retrieves for them: a report has only the store."""
        from siclip_platform.datasets.tools.summary import summarize_dataset, write_summary

        if self.study_run is not None and self._dataset is not None and "test" in self._dataset.split_names:
            summary = summarize_dataset(self._dataset, checkpoint=checkpoint)
            self.study_run.artifact(write_summary(summary, self.folder))
