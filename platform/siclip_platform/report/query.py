"""Read one study from an MLflow tracking store. Nothing here changes the store or MLflow's global state."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from siclip_platform.errors import UserError
from siclip_platform.metrics import metric_name, stored_key

if TYPE_CHECKING:
    from mlflow import MlflowClient

Curve = tuple[tuple[int, float], ...]
MEAN_RECALL = "validation/mean_recall@1"
TRAIN_LOSS = "train/loss"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One MLflow run. ``curves``: metric → (step, value) by step, the last value logged at each."""

    run_id: str
    name: str
    kind: str
    state: str
    started: datetime | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    curves: Mapping[str, Curve] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The trial id of a trial, the kind of a teacher, best or control run, else the run's name."""
        if self.kind == "trial":
            return self.tags.get("siclip.trial") or self.name
        return self.kind or self.name

    @property
    def steps(self) -> int | None:
        """Optimizer steps done: ``cost/steps``, or without it the last step that a curve holds."""
        logged = self.metrics.get("cost/steps")
        if logged is not None and math.isfinite(logged):
            return int(logged)
        return max((curve[-1][0] for curve in self.curves.values() if curve), default=None)


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study run with its children. ``notes``: what is missing from the store, in sentences."""

    run: Run
    experiment: str
    metric: str
    mode: str
    searched: tuple[str, ...]
    trials: tuple[Run, ...] = ()
    teacher: Run | None = None
    best: Run | None = None
    control: Run | None = None
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.run.tags.get("siclip.study") or self.run.name

    @property
    def runs(self) -> tuple[Run, ...]:
        """Every run that cost something: teacher, trials, best, control."""
        single = [run for run in (self.best, self.control) if run]
        return (*((self.teacher,) if self.teacher else ()), *self.trials, *single)

    @property
    def best_trial(self) -> Run | None:
        """The trial that the best run retrains, by its tag; without a best run the best completed trial."""
        if self.best is not None:
            wanted = self.best.tags.get("siclip.best_trial")
            return next((trial for trial in self.trials if trial.label == wanted), None)
        done = [trial for trial in self.trials if trial.state == "completed"]
        scored = [trial for trial in done if math.isfinite(trial.metrics.get(self.metric, math.nan))]
        pick = min if self.mode == "min" else max
        return pick(scored, key=lambda trial: trial.metrics[self.metric], default=None)


def read_study(tracking_uri: str, study: str | None, experiment: str) -> Study:
    """Read a study by name, or the newest one for None; of several with one name, the newest.

    Raises:
        UserError: no such store, experiment or study; the message lists those that exist.
    """
    _check_sqlite_file(tracking_uri)
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=tracking_uri)
    found = client.get_experiment_by_name(experiment)
    if found is None:
        names = [item.name for item in _pages(client.search_experiments)]
        raise UserError(
            f"no MLflow experiment {experiment!r} in this tracking store: it has {_listed(names)}. "
            "Name one of them, or check the tracking URI"
        )
    where: dict[str, Any] = {"experiment_ids": [found.experiment_id]}
    studies = [
        _run(item)
        for item in _pages(
            client.search_runs,
            **where,
            filter_string="tags.`siclip.kind` = 'study'",
            order_by=["attributes.start_time DESC"],
        )
    ]
    chosen = _choose(studies, study, experiment, bool(studies or client.search_runs(**where, max_results=1)))
    parent = f"tags.`mlflow.parentRunId` = '{chosen.run_id}'"
    order = ["attributes.start_time ASC"]
    children = [_run(item) for item in _pages(client.search_runs, **where, filter_string=parent, order_by=order)]
    return _assemble(client, found.name, chosen, children)


def _choose(studies: list[Run], wanted: str | None, experiment: str, any_runs: bool) -> Run:
    if not studies:
        has = "runs, but no study" if any_runs else "no runs"
        raise UserError(f"MLflow experiment {experiment!r} holds {has}: start one with `siclip-platform tune`")
    if wanted is None:
        return studies[0]
    for run in studies:
        if wanted == (run.tags.get("siclip.study") or run.name):
            return run
    names = dict.fromkeys(run.tags.get("siclip.study") or run.name for run in studies)
    raise UserError(f"no study {wanted!r} in MLflow experiment {experiment!r}: it has {_listed(names)}")


def _assemble(client: MlflowClient, experiment: str, run: Run, children: list[Run]) -> Study:
    notes: list[str] = []
    metric = run.params.get("study.metric")
    if metric is None:
        notes.append(f"The study does not record its metric; {MEAN_RECALL} is shown.")
    name = metric_name(metric) if metric else MEAN_RECALL
    searched = _searched(run)
    if not searched:
        notes.append("The study does not record which parameters it searched.")
    trials = [_with_curves(client, child, [name]) for child in children if child.kind == "trial"]
    if not trials:
        notes.append("The study has no trials.")
    single: dict[str, Run] = {}
    for kind in ("teacher", "best", "control"):
        same = [child for child in children if child.kind == kind]
        if not same:
            notes.append(f"The study has no {kind} run.")
            continue
        if len(same) > 1:
            notes.append(f"The study has {len(same)} {kind} runs; the newest is shown, a completed one first.")
        chosen = max(enumerate(same), key=lambda item: (item[1].state == "completed", item[0]))[1]
        single[kind] = _with_curves(client, chosen, [name, TRAIN_LOSS])
    study = Study(
        run=run,
        experiment=experiment,
        metric=name,
        mode=run.params.get("study.mode", "max"),
        searched=searched,
        trials=tuple(trials),
        teacher=single.get("teacher"),
        best=single.get("best"),
        control=single.get("control"),
    )
    if study.best is not None and study.best_trial is None:
        tag = study.best.tags.get("siclip.best_trial")
        notes.append(f"The best run names trial {tag!r}, which the study does not hold." if tag else NO_TRIAL_TAG)
    return replace(study, notes=tuple(notes))


NO_TRIAL_TAG = "The best run does not record which trial it retrains."


def _searched(run: Run) -> tuple[str, ...]:
    try:
        paths = json.loads(run.tags.get("siclip.searched", "[]"))
    except json.JSONDecodeError:
        return ()
    return tuple(str(path) for path in paths) if isinstance(paths, list) else ()


def _run(item: Any) -> Run:
    tags = dict(item.data.tags)
    start = item.info.start_time
    return Run(
        run_id=item.info.run_id,
        name=item.info.run_name or item.info.run_id,
        kind=tags.get("siclip.kind", ""),
        state=tags.get("siclip.state") or item.info.status.lower(),
        started=datetime.fromtimestamp(start / 1000, UTC) if start else None,
        tags=tags,
        params=dict(item.data.params),
        metrics={metric_name(key): _value(value) for key, value in item.data.metrics.items()},
    )


def _value(stored: float) -> float:
    """MLflow's sqlite store keeps an infinity as the largest float."""
    return math.copysign(math.inf, stored) if abs(stored) >= sys.float_info.max else stored


def _with_curves(client: MlflowClient, run: Run, names: Iterable[str]) -> Run:
    curves: dict[str, Curve] = {}
    for name in names:
        if name in run.metrics:
            history = client.get_metric_history(run.run_id, stored_key(name))
            points = sorted(history, key=lambda point: (point.step, point.timestamp))
            curves[name] = tuple({point.step: _value(point.value) for point in points}.items())
    return replace(run, curves=curves)


def _pages(search: Any, **arguments: Any) -> list[Any]:
    items: list[Any] = []
    token: str | None = None
    while True:
        page = search(**arguments, page_token=token)
        items.extend(page)
        token = page.token
        if not token:
            return items


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names) or "none"


def _check_sqlite_file(tracking_uri: str) -> None:
    """MLflow would create a missing database; a report must not."""
    if tracking_uri.startswith("sqlite:///"):
        path = Path(tracking_uri.removeprefix("sqlite:///").partition("?")[0])
        if not path.is_file():
            raise UserError(f"no MLflow database at {path}: check the tracking URI, or run a study first")
