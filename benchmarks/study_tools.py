"""Shared by the studies: runs that are trained once and stored, and their metrics.

A run's key is the hash of its recipe, with the dataset's hash and the teacher's key in place of their paths, so that
it does not depend on where the folders are. The metrics of a finished run are a line in ``runs.jsonl``. An
interrupted study therefore resumes with the missing runs, and several studies in one folder share their teachers.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from siclip.errors import UserError
from siclip_platform.datasets.manifest import Dataset, open_dataset
from siclip_platform.recipes.digits import digits_teacher
from siclip_platform.recipes.recipe import Recipe
from siclip_platform.storage.locking import claim
from siclip_platform.tracking import git_commit

RUNS = "runs.jsonl"
TEACHERS = "teachers"
Row = dict[str, Any]
RECIPE_OF_ALL = {"evaluation.validation_samples": 0, "training.evaluate_every": 0, "training.threads": 1}
"""Validate after the last step only, on the whole split; one thread each, because ``--jobs`` runs share the cores."""


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        dataset, setting: names in the tables.
        data: the dataset.
        recipe: of the training.
        teacher: the run that trained the recipe's teacher.
        keep: folder for the run's checkpoint; None: it is not kept.
    """

    dataset: str
    setting: str
    data: Dataset
    recipe: Recipe
    teacher: Run | None = None
    keep: Path | None = None

    @cached_property
    def identity(self) -> Recipe:
        """The recipe with hashes in place of the dataset's folder and the teacher's checkpoint."""
        return self.recipe.updated(
            {"data.path": self.data.hash, "teacher": self.teacher.key if self.teacher else None}
        )

    @property
    def key(self) -> str:
        return self.identity.hash

    @property
    def seed(self) -> int:
        return self.recipe.training.seed

    @property
    def checkpoint(self) -> Path | None:
        return self.keep / f"{self.dataset}-{self.key}.pt" if self.keep else None

    def __str__(self) -> str:
        return f"{self.dataset}, {self.setting}, seed {self.seed}"


def make_run(
    dataset: str, setting: str, data: Dataset, recipe: Recipe, *, teacher: Run | None = None, keep: Path | None = None
) -> Run:
    """A run of a study: ``recipe`` with the paths of dataset and teacher and with `RECIPE_OF_ALL`."""
    paths = {"data.path": str(data.folder), "teacher": str(teacher.checkpoint) if teacher else None}
    return Run(dataset, setting, data, recipe.updated(RECIPE_OF_ALL | paths), teacher, keep)


def open_datasets(options: argparse.Namespace) -> dict[str, Dataset]:
    """Name → dataset, for the datasets that the options name.

    Raises:
        UserError: there are none, or one cannot be read or lacks a split.
    """
    folders = {"digits": options.digits, "emoji64": options.emoji}
    datasets = {name: open_dataset(folder) for name, folder in folders.items() if folder}
    if not datasets:
        raise UserError("no dataset to study: name one with --digits FOLDER or --emoji FOLDER")
    for data in datasets.values():
        for split in ("train", "validation", "test"):
            data.entries(split)
    return datasets


def teacher_runs(datasets: Mapping[str, Dataset], options: argparse.Namespace) -> dict[str, Run]:
    """Dataset → the run that trains its teacher, with the recipe of the digit scenes' teacher."""
    steps = {"digits": options.digits_teacher_steps, "emoji64": options.emoji_teacher_steps}
    size = {"training.batch_size": options.batch_size}
    return {
        name: make_run(
            name,
            "teacher",
            data,
            digits_teacher(data.folder, steps=steps[name]).updated(size),
            keep=options.out / TEACHERS,
        )
        for name, data in datasets.items()
    }


class RunStore:
    """The finished runs of a folder: key → row."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / RUNS
        self.rows: dict[str, Row] = {}
        if not self.path.exists():
            return
        *lines, torn = self.path.read_bytes().split(b"\n")
        # A process that died while writing leaves an incomplete line; that run is trained again.
        if torn:
            print(f"{self.path}: its last line is incomplete and is removed", file=sys.stderr)
            os.truncate(self.path, self.path.stat().st_size - len(torn))
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                self.rows[row["key"]] = row
            except (ValueError, KeyError, TypeError):
                raise UserError(
                    f"{self.path}, line {number} is not a run: delete the line, and the run is trained again"
                ) from None

    def has(self, run: Run) -> bool:
        return run.key in self.rows and (run.checkpoint is None or run.checkpoint.exists())

    def add(self, run: Run, metrics: Mapping[str, float]) -> None:
        """Append the row of a finished run and flush it to disk; metrics that are not finite become null."""
        row = {
            "key": run.key,
            "dataset": run.dataset,
            "setting": run.setting,
            "seed": run.seed,
            "commit": git_commit(),
            "metrics": {name: value if math.isfinite(value) else None for name, value in metrics.items()},
            "recipe": run.identity.model_dump(mode="json"),
        }
        with self.path.open("a") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.rows[run.key] = row

    def figures(self, runs: Sequence[Run], metric: str) -> dict[int, float]:
        """Seed → value of a metric for these runs, which must be finished."""
        return {run.seed: self.rows[run.key]["metrics"][metric] for run in runs}


@contextmanager
def open_store(folder: Path) -> Iterator[RunStore]:
    """The store of a folder, locked for one study at a time.

    Raises:
        UserError: another study is using the folder, or it cannot be read or written.
    """
    try:
        (folder / TEACHERS).mkdir(parents=True, exist_ok=True)
        in_use = f"another study is running in {folder}: wait for it, or name another folder"
        lock = claim(folder / ".lock", in_use)
    except OSError as error:
        raise UserError(f"cannot use {folder}: {error}; name a writable folder") from None
    try:
        yield RunStore(folder)
    finally:
        lock.release()


def at_least(minimum: int) -> Callable[[str], int]:
    """An argparse type: an integer with a lower bound."""

    def integer(text: str) -> int:
        if int(text) < minimum:
            raise argparse.ArgumentTypeError(f"{text} is below {minimum}")
        return int(text)

    return integer


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that all studies have."""
    parser.add_argument("--digits", type=Path, metavar="FOLDER", help="digit scenes (siclip-platform data build)")
    parser.add_argument("--emoji", type=Path, metavar="FOLDER", help="emoji64 (benchmarks/emoji_dataset.py)")
    parser.add_argument("--out", type=Path, required=True, help="folder for runs and teachers; studies can share it")
    parser.add_argument("--report", type=Path, metavar="FILE.md", help="the page; its JSON is written beside it")
    parser.add_argument("--steps", type=at_least(2), default=200, help="steps of each student (%(default)s)")
    parser.add_argument("--digits-teacher-steps", type=at_least(2), default=600, help="(%(default)s)")
    parser.add_argument("--emoji-teacher-steps", type=at_least(2), default=600, help="(%(default)s)")
    parser.add_argument("--batch-size", type=at_least(2), default=128, help="for students and teachers (%(default)s)")
    parser.add_argument("--jobs", type=at_least(1), default=2, help="runs at a time, one thread each (%(default)s)")


def worker_pool(jobs: int) -> ProcessPoolExecutor:
    """Processes that train."""
    # OpenMP threads that spin while waiting would take the cores from the other processes.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    return ProcessPoolExecutor(jobs, mp_context=get_context("spawn"))


def complete(runs: Sequence[Run], store: RunStore, pool: Executor) -> None:
    """Train the runs that the store lacks, each recipe once. A failure does not stop the others.

    Raises:
        RuntimeError: runs failed; the next call trains these again, but not the finished ones.
    """
    todo = list({run.key: run for run in runs if not store.has(run)}.values())
    futures = {pool.submit(train_and_measure, run.recipe.model_dump_json(), run.checkpoint): run for run in todo}
    failures, started = [], time.monotonic()
    for number, future in enumerate(as_completed(futures), 1):
        run = futures[future]
        try:
            metrics = future.result()
        except Exception as error:
            failures.append(f"{run}: {type(error).__name__}: {error}")
            print(f"failed: {failures[-1]}", file=sys.stderr, flush=True)
            continue
        store.add(run, metrics)
        left = (time.monotonic() - started) * (len(todo) - number) / number
        hit, hard = metrics["test/mean_recall@1"], metrics["test/beats_all_negatives"]
        print(
            f"{number}/{len(todo)} {run}: R@1 {hit:.3f}, beats all {hard:.3f}; about {left / 60:.0f} min left",
            flush=True,
        )
    if failures:
        raise RuntimeError(f"{len(failures)} of {len(todo)} runs failed:\n  " + "\n  ".join(failures))


class _KeepLast:
    """A `Reporter` that keeps the latest metrics and writes the checkpoint to one file."""

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint
        self.metrics: dict[str, float] = {}

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.metrics |= metrics

    def milestone(self, step: int, metrics: Mapping[str, float], save: Any) -> None:
        self.metrics |= metrics
        if save is not None:
            save(self.checkpoint)


def train_and_measure(recipe_json: str, checkpoint: Path | None) -> dict[str, float]:
    """Train a recipe in this process; its metrics after the last step, including validation and test."""
    from siclip_platform.evaluation import evaluate_checkpoint
    from siclip_platform.training.in_process import run_recipe

    recipe = Recipe.model_validate_json(recipe_json)
    with tempfile.TemporaryDirectory() as folder:
        reporter = _KeepLast(checkpoint or Path(folder) / "model.pt")
        costs = run_recipe(recipe, reporter)
        test = evaluate_checkpoint(reporter.checkpoint, Path(recipe.data.path), "test")
    return reporter.metrics | costs | test


def environment(commits: Sequence[str | None]) -> dict[str, Any]:
    """Machine, versions and the commits of the code with which the runs were made."""
    return {
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "versions": {"python": platform.python_version()} | {name: version(name) for name in ("torch", "timm")},
        "commits": sorted({commit or "outside a checkout" for commit in commits}),
    }
