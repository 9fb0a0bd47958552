"""The parts of a WIKD search, as `jobs/tune_wikd.py` tells them: dataset, teacher, study, best and control."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siclip.errors import UserError
from siclip.models.registry import model_config
from siclip.models.sharing import parse_pattern
from siclip_platform.cluster import Needs, ray_cluster
from siclip_platform.datasets.manifest import Dataset, open_dataset
from siclip_platform.display import Display, Task
from siclip_platform.evaluation import evaluate_checkpoint
from siclip_platform.ray_trainer import run_with_ray_train
from siclip_platform.recipe import Recipe
from siclip_platform.search.definition import SearchSpace
from siclip_platform.timeline import Timeline
from siclip_platform.tracking import Kind, TrackedRun, Tracker, default_tracking_uri
from siclip_platform.trainer import check

WORKER_CPUS = 1.0


@dataclass(frozen=True)
class Options:
    """Where a search reads and writes, and how much it does. Paths may be relative to the working folder."""

    out: Path
    data: Path | None = None
    teacher: Path | None = None
    tracking_uri: str | None = None
    address: str | None = None
    trials: int = 8
    concurrent: int = 2
    seed: int = 0
    verbose: bool = False

    @property
    def dataset_folder(self) -> Path:
        """``data``, or where the embedded default is built."""
        return (self.data or self.out / "digit-scenes").resolve()


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
        self.tags: dict[str, str] = {"study": name}
        self.study_run: TrackedRun | None = None
        self.timeline = Timeline()

    def dataset(self) -> Dataset:
        """The dataset named in the options, or digit scenes in the output folder, built if missing."""
        folder = self.options.dataset_folder
        if self.options.data is None:
            from siclip_platform.datasets.digits import DigitScenesConfig, build_digit_scenes

            with self.timeline.span("dataset"), self.display.task("digit scenes") as task:
                build_digit_scenes(folder, DigitScenesConfig(), task.progress)
        dataset = open_dataset(folder)
        self.tags["dataset_hash"] = dataset.hash
        return dataset

    def begin_study(self, space: SearchSpace, base: Recipe) -> None:
        """Open the study's MLflow run, the parent of all that follow."""
        params = {
            "study.space": space.name,
            "study.space_hash": space.hash,
            "study.metric": space.metric,
            "study.mode": space.mode,
            "study.trials": self.options.trials,
            "study.seed": self.options.seed,
        }
        searched = json.dumps([parameter.path for parameter in space.parameters])
        tags = {**self.tags, "searched": searched, "command": command_line(sys.argv)}
        self.study_run = self.tracker.start(self.name, "study", params=params | base.flat(), tags=tags)

    def search(self, space: SearchSpace, base: Recipe) -> Any:
        """Run the study; a `siclip_platform.search.study.StudyResult`."""
        from siclip_platform.search.study import StudyCallback, run_study

        assert self.study_run is not None
        title = f"{self.options.trials} trials"
        with self.timeline.span(title), self.display.task(title, total=self.options.trials) as task:
            callback = StudyCallback(space, base, self.tracker, self.study_run, self.tags, task)
            result = run_study(
                space,
                base,
                name=self.name,
                trials=self.options.trials,
                seed=self.options.seed,
                folder=self.folder,
                concurrent=self.options.concurrent,
                worker_cpus=WORKER_CPUS,
                callback=callback,
            )
        states = [trial.state for trial in result.trials]
        counts = {f"study/{state}": states.count(state) for state in ("completed", "pruned", "failed")}
        self.study_run.log(0, {**counts, f"study/best/{space.metric}": result.best.value})
        return result

    def train(self, recipes: Mapping[Kind, Recipe], **tags: str) -> dict[Kind, Finished]:
        """Train these under Ray Train, as many at a time as the options say, and measure each on the test split."""
        span = self.timeline.span(" and ".join(recipes))
        with span, ThreadPoolExecutor(max_workers=self.options.concurrent) as pool:
            jobs = {kind: pool.submit(self._train, kind, recipe, tags) for kind, recipe in recipes.items()}
            return {kind: job.result() for kind, job in jobs.items()}

    def _train(self, kind: Kind, recipe: Recipe, tags: Mapping[str, str]) -> Finished:
        run = self.tracker.start(
            kind,
            kind,
            params=recipe.flat(),
            tags={**self.tags, **tags, "recipe_hash": recipe.hash},
            parent=self.study_run,
        )
        try:
            with self.display.task(kind, total=recipe.training.steps) as task:
                trained = run_with_ray_train(
                    recipe,
                    name=kind,
                    storage=self.folder / "train",
                    log=_both(run, task),
                    worker_cpus=WORKER_CPUS,
                )
            metrics = trained.metrics | evaluate_checkpoint(trained.checkpoint, Path(recipe.data.path), "test")
            run.finish("completed", {k: v for k, v in metrics.items() if "/" in k})
            run.artifact(trained.checkpoint)
        except BaseException as error:
            run.finish("failed", reason=f"{type(error).__name__}: {error}")
            raise
        return Finished(trained.checkpoint, metrics)


def _both(run: TrackedRun, task: Task) -> Any:
    def log(step: int, metrics: Mapping[str, float]) -> None:
        run.log(step, metrics)
        loss = metrics.get("train/loss")
        task.update(step, f"loss {loss:.3f}" if loss is not None else None)

    return log


@contextmanager
def open_experiment(options: Options, name: str, *recipes: Recipe) -> Iterator[Experiment]:
    """Check all that can be checked, connect MLflow and Ray, and close both at the end.

    ``recipes`` are what will be trained. Their dataset need not exist yet if it is the embedded default.

    Raises:
        UserError: see `Tracker`, `ray_cluster`, `siclip_platform.trainer.check`.
    """
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output folder {options.out} cannot be made: {error.strerror}; name another --out") from None
    for recipe in recipes:
        check(recipe, with_data=options.data is not None)
    uri = options.tracking_uri or default_tracking_uri(options.out)
    display = Display()
    tracker = Tracker(uri, artifacts=options.out / "artifacts")
    needs = Needs(concurrent=options.concurrent, worker_cpus=WORKER_CPUS)
    experiment = Experiment(options, display, tracker, unused_name(name, tracker, options.out))
    with ray_cluster(needs, options.address, options.verbose), display.live():
        try:
            yield experiment
        except BaseException as error:
            if experiment.study_run:
                experiment.study_run.finish("failed", reason=f"{type(error).__name__}: {error}")
            raise
        if experiment.study_run:
            experiment.study_run.finish("completed")
        experiment.timeline.write(options.out)


def command_line(arguments: Sequence[str]) -> str:
    """The command that began this process, for the report; without the tracking URI, which may hold a password."""
    program = Path(arguments[0])
    start = ["python", f"jobs/{program.name}"] if program.parent.name in ("jobs", "_jobs") else ["siclip-platform"]
    kept: list[str] = []
    rest = iter(arguments[1:])
    for argument in rest:
        if argument == "--tracking-uri":
            next(rest, None)
        elif not argument.startswith("--tracking-uri="):
            kept.append(argument)
    return shlex.join([*start, *kept])


def unused_name(name: str, tracker: Tracker, out: Path) -> str:
    """``name``, or with the lowest number behind it that neither the store nor the folder has yet."""
    taken = tracker.study_names()
    number, candidate = 1, name
    while candidate in taken or (out / candidate).exists():
        number += 1
        candidate = f"{name}-{number}"
    return candidate


def check_sharing(recipe_model: str) -> Any:
    """For `load_space`: what is wrong with a value of a sharing pattern for this model, else None."""
    config = model_config(recipe_model)
    blocks = {"model.image_sharing": config.image.layers[-1], "model.text_sharing": config.text.layers}

    def check(path: str, value: Any) -> str | None:
        if path in blocks and isinstance(value, str):
            try:
                parse_pattern(value, blocks[path])
            except UserError as error:
                return str(error)
        return None

    return check


def default_out() -> Path:
    """Where outputs go if no place is named: ``runs/`` here, or ``siclip-runs/`` at home inside a Ray job.

    A job submitted with a working dir runs in a copy that Ray deletes, so nothing may be left there.
    """
    here = Path.cwd()
    if "_ray_pkg_" in str(here):
        return Path.home() / "siclip-runs" / "tune_wikd"
    return here / "runs" / "tune_wikd"
