"""Trainings of a study outside its search: teacher, best, control and confirmation, each under Ray Train."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, cast

from siclip_platform.cluster.interrupt import UNINTERRUPTIBLE
from siclip_platform.datasets.manifest import Dataset
from siclip_platform.display import Display, Task
from siclip_platform.evaluation import evaluate_checkpoint
from siclip_platform.recipes.recipe import Recipe
from siclip_platform.storage import copy_file
from siclip_platform.storage.atomic import write_text_atomically
from siclip_platform.studies.extension import first_state
from siclip_platform.studies.names import Names
from siclip_platform.studies.options import WORKER_CPUS, Options
from siclip_platform.tracking import RunKind, TrackedRun, Tracker
from siclip_platform.training.ray_train import TrainedModel, run_with_ray_train

STOP_SECONDS, FAIL_SECONDS = 5.0, 60.0  # after Ctrl-C somebody waits
LOGGED_MODELS = ("best", "train")
SHOWN = {"best": "leading"}  # nothing is named best before fresh seeds have shown it
Jobs = Mapping[Any, tuple[Recipe, Mapping[str, str]]]
"""Name → recipe and tags."""


def final_split(dataset: Dataset) -> str:
    """The split on which finished models are measured: ``test``, or ``validation`` without samples for a test."""
    return "test" if "test" in dataset.split_names and dataset.rows("test") else "validation"


@dataclass(frozen=True)
class Finished:
    """A model trained under Ray Train and measured on the `final_split`."""

    checkpoint: Path
    metrics: dict[str, float]


@dataclass(kw_only=True)
class FinalRuns:
    """Trains recipes in a study's folder and measures each on the `final_split` of the dataset.

    Attributes:
        key: of the study; the runs' keys begin with it.
        tags: MLflow tags of every run, without the prefix.
        study_run: parent of the runs, if the study has a run.
        dataset: logged with every run, if it is known; else it is assumed to have a test split.
        earlier: recipes that a recipe extends, the oldest first: its training begins with a state of one of them.
    """

    options: Options
    display: Display
    tracker: Tracker
    folder: Path
    key: str
    tags: Mapping[str, str]
    study_run: TrackedRun | None = None
    dataset: Dataset | None = None
    earlier: tuple[Recipe, ...] = ()
    _stopped: threading.Event = field(default_factory=threading.Event, init=False)
    _running: dict[str, TrackedRun] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._names = Names(self.folder)

    def train_all(self, jobs: Jobs) -> dict[Any, Finished]:
        """Train and measure all, as many at a time as the options allow.

        A recipe that the study finished before under the same name is not trained again. A name is a kind of run, or
        starts with one and ``-``. At the first error, and at Ctrl-C, the trainings that still run are given up: they
        are marked as interrupted, and resume from their last checkpoints.
        """
        waiting: SimpleQueue[Any] = SimpleQueue()
        done: dict[Any, Future[Finished]] = {}
        for name in jobs:
            waiting.put(name)
            done[name] = Future()

        def work() -> None:
            while not self._stopped.is_set():
                try:
                    name = waiting.get_nowait()
                except Empty:
                    return
                try:
                    done[name].set_result(self._train(name, *jobs[name]))
                except Exception as error:
                    done[name].set_exception(error)
                except SystemExit:  # how Ray ends a call when it is shut down
                    done[name].set_exception(RuntimeError(f"Ray was shut down while {name} trained"))

        # Not a ThreadPoolExecutor: it waits for its threads when the block and the process end, and a thread that
        # waits for Ray Train cannot be interrupted.
        count = min(self.options.trainings, len(jobs))
        threads = [threading.Thread(target=work, daemon=True, name=UNINTERRUPTIBLE) for _ in range(count)]
        for thread in threads:
            thread.start()
        try:
            wait(done.values(), return_when=FIRST_EXCEPTION)
            for future in done.values():
                if future.done():
                    future.result()
            return {name: future.result() for name, future in done.items()}
        except BaseException as error:
            self._give_up(threads, STOP_SECONDS if isinstance(error, KeyboardInterrupt) else FAIL_SECONDS)
            raise

    def _give_up(self, threads: Sequence[threading.Thread], seconds: float) -> None:
        self._stopped.set()
        for run in list(self._running.values()):
            run.finish("interrupted")
        # A thread that uses Ray while Ray is shut down would end the process.
        until = time.monotonic() + seconds
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _train(self, name: str, recipe: Recipe, tags: Mapping[str, str]) -> Finished:
        """Train unless it is finished. A run of the same name with another recipe stays and is marked."""
        stem = self._names.stem(name, recipe)
        finished = self._known(stem) or self._train_and_track(name, stem, recipe, tags)
        others = self._names.superseded(name)
        for other in (*others, *([stem] if others else [])):
            self.tracker.supersede(f"{self.key}/{other}", "" if other == stem else f"{self.key}/{stem}")
        return finished

    def _known(self, stem: str) -> Finished | None:
        metrics = self.folder / f"{stem}.json"
        if self.tracker.spool.ended(f"{self.key}/{stem}") != "FINISHED" or not metrics.is_file():
            return None
        return Finished(self.folder / f"{stem}.pt", json.loads(metrics.read_text()))

    def _train_and_track(self, name: str, stem: str, recipe: Recipe, tags: Mapping[str, str]) -> Finished:
        kind = cast(RunKind, name.partition("-")[0])
        recorded = {"seed": str(recipe.training.seed), "recipe_hash": recipe.hash, "final_split": self._final_split}
        run = self.tracker.start(
            SHOWN.get(name, name),
            kind,
            params=recipe.flat(),
            tags={**self.tags, **recorded, **tags},
            parent=self.study_run,
            key=f"{self.key}/{stem}",
            reopen=True,
        )
        if self.dataset is not None and not run.known:
            run.dataset(self.dataset.manifest.name, self.dataset.hash, self.dataset.folder)
        self._running[stem] = run
        try:
            finished = self._train_and_measure(stem, recipe, run)
            write_text_atomically(self.folder / f"{stem}.json", json.dumps(finished.metrics))
            run.artifact(finished.checkpoint)
            if kind in LOGGED_MODELS:
                run.model(finished.checkpoint, kind, register=self.options.register_as)
            run.finish("completed", {k: v for k, v in finished.metrics.items() if "/" in k})
        except BaseException as error:
            # No effect on a run that was given up: it is closed as interrupted.
            run.finish("failed", reason=f"{type(error).__name__}: {error}")
            raise
        finally:
            self._running.pop(stem)
        return finished

    def _train_and_measure(self, name: str, recipe: Recipe, run: TrackedRun) -> Finished:
        kept = self.options.checkpoints / self.folder.name if self.options.checkpoints else None
        begin = first_state(self.folder, self.earlier, recipe, kept)
        if begin:
            self.display.say(f"{name} begins after the {begin.step:,} steps that are done")
        with self.display.task(name, total=recipe.training.steps) as task:
            trained = run_with_ray_train(
                recipe,
                name=name,
                storage=self.folder / "train",
                log=_log_to(run, task),
                worker_cpus=WORKER_CPUS,
                workers=self.options.workers,
                stopped=self._stopped,
                checkpoints=kept / "train" if kept else None,
                begin=begin,
            )
            if kept:
                copy_file(trained.checkpoint, kept / f"{name}.pt")
        return Finished(trained.checkpoint, trained.metrics | self._measure(trained, recipe))

    @property
    def _final_split(self) -> str:
        return final_split(self.dataset) if self.dataset else "test"

    def _measure(self, trained: TrainedModel, recipe: Recipe) -> dict[str, float]:
        split = self._final_split
        # The training measured its last step on the validation split; a second figure of the same name would be lost
        # in MLflow, or differ from it where the recipe evaluates on a part of the split.
        if any(name.startswith(f"{split}/") for name in trained.metrics):
            return {}
        return evaluate_checkpoint(trained.checkpoint, recipe.data.path, split)


def _log_to(run: TrackedRun, task: Task) -> Callable[[int, Mapping[str, float]], None]:
    def log(step: int, metrics: Mapping[str, float]) -> None:
        run.log(step, metrics)
        loss = metrics.get("train/loss")
        task.update(step, f"loss {loss:.3f}" if loss is not None else None)

    return log
