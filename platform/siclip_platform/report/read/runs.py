"""The data of a report: runs, and studies of runs."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

Curve = tuple[tuple[int, float], ...]
StudyType = Literal["search", "ablation", "runs"]
MEAN_RECALL = "validation/mean_recall@1"
TRAIN_LOSS = "train/loss"
# Shown in this order wherever best, control and teacher are compared.
SHOWN_KINDS = {"best": "leading"}
"""What a kind of run is called in text: nothing is called best before it is shown to be."""
HEADLINE = ("test/mean_recall@1", "test/image_retrieval_recall@1", "test/beats_all_negatives")


def measured(names: Iterable[str], *runs: Run | None) -> tuple[str, ...]:
    """These metrics of the test split, or of the validation split if no run was measured on a test split."""
    tested = any(name.startswith("test/") for run in runs if run for name in run.metrics)
    return tuple(name if tested else name.replace("test/", "validation/", 1) for name in names)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One MLflow run.

    Attributes:
        kind: The tag ``siclip.kind``.
        state: The tag ``siclip.state``, or MLflow's status without it.
        metrics: Name → the last value logged.
        curves: Metric → (step, value) in order of steps; at each step the last value logged.
        link: URL of the run's page, if the store has pages.
    """

    run_id: str
    name: str
    kind: str
    state: str
    experiment_id: str = ""
    started: datetime | None = None
    ended: datetime | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    curves: Mapping[str, Curve] = field(default_factory=dict)
    link: str | None = None

    def tag(self, name: str) -> str | None:
        return self.tags.get(f"siclip.{name}")

    @property
    def parent(self) -> str | None:
        return self.tags.get("mlflow.parentRunId")

    @property
    def label(self) -> str:
        """Setting or trial id of a trial, seed run or confirmation; kind of another run of a study; else the name."""
        if self.kind in ("trial", "seed", "confirm"):
            return self.tag("setting") or self.tag("trial") or self.name
        if self.kind in ("teacher", "best", "control", "study"):
            return SHOWN_KINDS.get(self.kind, self.kind)
        return self.name

    @property
    def seed(self) -> int | None:
        """The tag ``siclip.seed``, or without it the recipe's seed."""
        text = self.tag("seed") or self.params.get("training.seed") or ""
        # Bounded to 64 bits: a tag is text of any length from any store.
        return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else None

    @property
    def steps(self) -> int | None:
        """Optimizer steps done: ``cost/steps``, or without it the last step of any curve."""
        logged = self.value("cost/steps")
        if logged is not None:
            return int(logged)
        return max((curve[-1][0] for curve in self.curves.values() if curve), default=None)

    def value(self, metric: str) -> float | None:
        """A metric's last value if it is finite, else None."""
        found = self.metrics.get(metric)
        return found if found is not None and math.isfinite(found) else None


def _same(one: str | None, other: str) -> bool:
    """Whether two parameters are equal: as text, or as numbers (``1`` and ``1.0``)."""
    if one is None or one == other:
        return one == other
    try:
        return float(one) == float(other)
    except ValueError:
        return False


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study with its runs, or (type ``runs``) runs selected individually.

    Attributes:
        run: The study's own run, the parent of the others.
        experiment: Name of the MLflow experiment.
        metric: The metric that the study optimizes or compares by.
        mode: ``max`` or ``min``.
        searched: Recipe fields that the search varied.
        seeds: Seed runs of all trials.
        confirms: Runs of the leading setting and of its baseline with fresh seeds.
        notes: Sentences on what the store lacks.
        data: Text of ``data_summary.json``.
        items: Text of ``items.json``.
        page: URL of MLflow's table of the study's runs, if the store has pages.
    """

    run: Run
    experiment: str
    type: StudyType = "search"
    metric: str = MEAN_RECALL
    mode: str = "max"
    searched: tuple[str, ...] = ()
    trials: tuple[Run, ...] = ()
    seeds: tuple[Run, ...] = ()
    confirms: tuple[Run, ...] = ()
    teachers: tuple[Run, ...] = ()
    best: Run | None = None
    control: Run | None = None
    notes: tuple[str, ...] = ()
    data: str | None = None
    items: str | None = None
    page: str | None = None

    @property
    def name(self) -> str:
        return self.run.tag("study") or self.run.name

    @property
    def question(self) -> str | None:
        return self.run.tag("question")

    @property
    def baseline(self) -> str | None:
        return self.run.tag("baseline")

    @property
    def teacher(self) -> Run | None:
        return self.teachers[0] if self.teachers else None

    @property
    def higher_is_better(self) -> bool:
        return self.mode != "min"

    @property
    def leaves(self) -> tuple[Run, ...]:
        """Runs that trained: a trial with seed runs is replaced by them."""
        # A trial with seed runs logs only means over them, which must not count as one more training.
        parents = {run.parent for run in self.seeds}
        alone = tuple(trial for trial in self.trials if trial.run_id not in parents)
        return (*alone, *self.seeds)

    @property
    def runs(self) -> tuple[Run, ...]:
        """All runs that trained: teachers, trials or their seed runs, best, control, confirmations."""
        single = [run for run in (self.best, self.control) if run]
        return (*self.teachers, *self.leaves, *single, *self.confirms)

    @property
    def best_trial(self) -> Run | None:
        """The trial that the best run retrained, by its tag; without a best run the best completed trial."""
        if self.best is not None:
            tag = self.best.tag("best_trial")
            return next((t for t in self.trials if tag and tag in (t.tag("trial"), t.run_id, t.name)), None)
        return self.ranked[0] if self.ranked else None

    @property
    def start(self) -> Run | None:
        """The trial of the recipe that a search began with; None if the study's run does not record that recipe."""
        begun = {path: self.run.params[path] for path in self.searched if path in self.run.params}
        if self.type != "search" or not begun:
            return None
        return next((t for t in self.trials if all(_same(t.params.get(path), begun[path]) for path in begun)), None)

    @property
    def ranked(self) -> list[Run]:
        """Completed trials with a finite value of the study's metric, best first."""
        scored = [t for t in self.trials if t.state == "completed" and t.value(self.metric) is not None]
        return sorted(scored, key=lambda trial: trial.metrics[self.metric], reverse=self.higher_is_better)

    def gain(self, difference: float) -> float:
        """A difference of the study's metric with its sign changed, if need be, so that positive is better."""
        return difference if self.higher_is_better else -difference
