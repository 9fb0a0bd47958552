"""The conductor, driven as Ray Tune drives it but without Ray: what each store gets, and how often."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest

from siclip_platform.metrics import METRICS
from siclip_platform.recipes.recipe import Recipe
from siclip_platform.search.conductor import Conductor
from siclip_platform.search.policy.searcher import StudySearch, make_searcher
from siclip_platform.search.study import StudyPlan
from siclip_platform.search.tune_run import ConductorCallback, ConductorSearcher
from siclip_platform.spaces.parsing import parse_space
from tests.support import study_parts as parts

SPACE = """\
name: t
metric: validation/mean_recall@1
parameters:
  training.weight_decay: {distribution: uniform, low: 0, high: 1}
"""
STEPS = range(parts.EVERY, parts.STEPS + 1, parts.EVERY)


class CountingRecorder:
    """In place of MLflow: counts calls and keeps what they record."""

    tracker = study = None

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.results: list[tuple[str, int]] = []
        self.shown: list[tuple[int, float | None]] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        def call(*args: Any) -> None:
            self.calls[name] += 1
            if name == "result":
                self.results.append(args[:2])
            if name == "progress":
                self.shown.append((args[0], args[2]))

        return call


class Tune:
    """Calls a conductor as Ray Tune does, one trial at a time."""

    def __init__(self, plan: StudyPlan, rerun: bool = True) -> None:
        self.recorder = CountingRecorder()
        recorder: Any = self.recorder
        self.conductor = Conductor(plan, recorder, rerun)
        self.searcher = ConductorSearcher(self.conductor)
        self.callback = ConductorCallback(self.conductor)

    def start(self, tune_id: str) -> dict[str, Any]:
        values = self.searcher.suggest(tune_id)
        self.callback.on_trial_start(
            0, [], SimpleNamespace(trial_id=tune_id, error_file=None, pickled_error_file=None)
        )
        return dict(values)

    def report(self, tune_id: str, step: int, value: float, stops: bool = False) -> None:
        metrics = {parts.METRIC: value, "cost/seconds": 1.0}
        if not stops:  # Tune reports to the searcher before the callbacks, but not the result that stops a trial
            self.searcher.on_trial_result(tune_id, {"step": step, "seeds/0/metrics": 0.0, **metrics})
        seeds = {"0": {"metrics": metrics, "history": []}}
        self.callback.on_trial_result(
            0, [], SimpleNamespace(trial_id=tune_id), {"step": step, "seeds": seeds, "notes": {}, **metrics}
        )

    def run(self, tune_id: str, last: int = parts.STEPS, error: bool = False) -> None:
        decay = self.start(tune_id)["training.weight_decay"]
        for step in (step for step in STEPS if step <= last):
            self.report(tune_id, step, parts.score(decay, 0, step), stops=step == last < parts.STEPS)
        self.searcher.on_trial_complete(tune_id, {}, error)


def optuna_searcher(folder: Path, trials: int) -> StudySearch:
    space = parse_space(SPACE, "t.yaml", METRICS, None)
    options: dict[str, Any] = {"seed": 0, "num_trials": trials, "max_steps": parts.STEPS, "study_name": "s"}
    return make_searcher(space, storage=folder / "optuna.db", **options)


def count_calls(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, calls: Counter[str]) -> None:
    original = getattr(owner, name)

    def counted(*args: Any, **options: Any) -> Any:
        calls[f"{owner.__name__}.{name}"] += 1
        return original(*args, **options)

    monkeypatch.setattr(owner, name, counted)


@pytest.mark.parametrize("options", [{}, {"disk_budget": 450}, {"backend": "train", "disk_budget": 450}])
def test_the_work_per_trial_does_not_grow_with_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    trials = 40
    decays = [0.1 + 0.001 * ((7 * number) % trials) for number in range(trials)]
    tune = Tune(parts.plan(tmp_path, tmp_path, decays, **options))
    calls: Counter[str] = Counter()
    for owner, name in ((Recipe, "updated"), (Path, "glob"), (Path, "rglob"), (Path, "is_dir"), (Path, "stat")):
        count_calls(monkeypatch, owner, name, calls)
    per_trial: list[dict[str, int]] = []
    for number in range(trials):
        before = calls + tune.recorder.calls + Counter(searcher=len(tune.conductor.plan.searcher.results))
        folder = tmp_path / "checkpoints" / f"tune{number}"
        folder.mkdir(parents=True)
        (folder / "seed-0.step-8.pt").write_bytes(b"x" * 100)
        tune.run(f"tune{number}", error=number % 5 == 4)
        after = calls + tune.recorder.calls + Counter(searcher=len(tune.conductor.plan.searcher.results))
        per_trial.append(dict(after - before))
    for early, late in zip(per_trial[10:15], per_trial[-5:], strict=True):
        assert late == early
    assert per_trial[-2]["searcher"] == per_trial[-2]["result"] == len(STEPS)
    tune.conductor.journal.close()


def test_every_result_reaches_each_store_once(tmp_path: Path) -> None:
    tune = Tune(parts.plan(tmp_path, tmp_path, [0.2, 0.5, 0.3]))
    tune.run("a")
    tune.run("b", last=4)
    tune.run("c", last=6, error=True)
    steps = {"trial-000": 8, "trial-001": 4, "trial-002": 6}
    every = [(name, step) for name, last in steps.items() for step in range(2, last + 1, 2)]
    searcher = tune.conductor.plan.searcher
    assert searcher.results == tune.recorder.results == every
    ends = {name: ((result or {})["step"], error) for name, (result, error) in searcher.completed.items()}
    assert ends == {"trial-000": (8, False), "trial-001": (4, False), "trial-002": (6, True)}
    tune.conductor.journal.close()


def test_a_restart_reports_what_the_searcher_missed_and_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports: list[tuple[int, int]] = []
    report = optuna.Trial.report

    def counted(trial: optuna.Trial, value: float, step: int) -> None:
        reports.append((trial.number, step))
        report(trial, value, step)

    monkeypatch.setattr(optuna.Trial, "report", counted)
    killed = Tune(parts.plan(tmp_path, tmp_path, [], searcher=optuna_searcher(tmp_path, 2), trials=2))
    killed.run("a")
    decay = killed.start("b")["training.weight_decay"]
    killed.report("b", 2, parts.score(decay, 0, 2))
    missed = {parts.METRIC: parts.score(decay, 0, 4), "cost/seconds": 1.0}
    killed.conductor.journal.result("trial-001", 4, missed, {"0": missed})  # the kill comes before Optuna has it
    killed.conductor.journal.close()

    resumed = Tune(parts.plan(tmp_path, tmp_path, [], searcher=optuna_searcher(tmp_path, 2), trials=2))
    resumed.conductor.catch_up()
    assert resumed.start("b2")["training.weight_decay"] == decay
    for step in STEPS:  # the trial replays its first milestones
        resumed.report("b2", step, parts.score(decay, 0, step))
    resumed.searcher.on_trial_complete("b2", {}, False)
    assert reports == [(number, step) for number in (0, 1) for step in STEPS]
    lines = (tmp_path / "journal.jsonl").read_text().splitlines()
    assert sum('"result"' in line and "trial-001" in line for line in lines) == len(STEPS)
    assert resumed.recorder.results == [("trial-001", step) for step in STEPS]  # a run drops those that it has
    stored = optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path}/optuna.db").trials[1]
    assert stored.intermediate_values == pytest.approx({step: parts.score(decay, 0, step) for step in STEPS})
    assert stored.state == optuna.trial.TrialState.COMPLETE
    resumed.conductor.journal.close()


def test_the_progress_line_has_the_best_completed_trial(tmp_path: Path) -> None:
    plan = parts.plan(tmp_path, tmp_path, [0.9, 0.3, 0.5, 0.4, 0.6])
    tune = Tune(plan)
    tune.run("a", last=4)
    for tune_id in ("b", "c", "d"):
        tune.run(tune_id)
    best = [None, *(parts.score(decay, 0, 8) for decay in (0.3, 0.5, 0.5))]
    assert tune.recorder.shown == [(count, value) for count, value in enumerate(best, start=1)]
    assert tune.conductor.result().best.value == best[-1]
    tune.conductor.journal.close()

    resumed = Tune(parts.plan(tmp_path, tmp_path, plan.searcher.weight_decays))
    resumed.conductor.catch_up()
    resumed.run("e")
    assert resumed.recorder.shown == [(4, best[-1]), (5, parts.score(0.6, 0, 8))]
    resumed.conductor.journal.close()
