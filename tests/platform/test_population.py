"""Population based training: who takes over what, what is recorded of it, and that the record computes the same."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
import torch

from siclip.checkpoints.formats import read_checkpoint
from siclip_platform.errors import UserError
from siclip_platform.metrics import METRICS
from siclip_platform.recipe import Recipe, load_recipe
from siclip_platform.report.query import Selection, read_studies
from siclip_platform.report.sections.schedules import schedules
from siclip_platform.report.store import Store
from siclip_platform.report.values import Table
from siclip_platform.search.definition import Parameter, SearchSpace
from siclip_platform.search.lane import train_recipe
from siclip_platform.search.parsing import parse_space
from siclip_platform.search.policy import SchedulerConfig
from siclip_platform.search.population import PopulationConductor
from siclip_platform.search.recorder import Recorder
from siclip_platform.search.searcher import make_searcher
from siclip_platform.search.study import StudyResult, run_study
from siclip_platform.search.turns import Population, changed, draw, make_population, turn_steps
from siclip_platform.tracking import Tracker
from tests.platform import study_parts as parts

PATH = "loss.feature_distillation"
SPACE = """\
name: p
metric: validation/mean_recall@1
mode: max
parameters:
  loss.feature_distillation: {distribution: log_uniform, low: 1, high: 1000}
scheduler: {name: pbt, perturbation_interval: 4, quantile: 0.34}
"""
STEPS = 12
CRASHES = 666.0
WEIGHTS = [100.0, 300.0, 900.0, 200.0, 1000.0, 400.0]  # the best weight falls from 100 to 10


def space() -> SearchSpace:
    return parse_space(SPACE, "p.yaml", METRICS, None)


def population(**changes: Any) -> Population:
    return Population(**{"space": space(), "interval": 4, "quantile": 0.34, "resample": 0.25, "seed": 3} | changes)


def base(data: Path) -> Recipe:
    return parts.base_recipe(data, steps=STEPS, evaluate_every=2).updated({PATH: 100.0})


def gain(weight: float, step: int) -> float:
    best = 100 * 10 ** (-step / STEPS)
    return 1 - abs(math.log(weight / best)) / 10


def follow(recipe: Recipe, reporter: Any, checkpoint: Path | None) -> None:
    """A training whose state is all that its weights have come to, and the weights themselves."""
    state = json.loads(checkpoint.read_text()) if checkpoint else {"level": 0.0, "applied": []}
    for step in range(len(state["applied"]), recipe.training.steps):
        weight = recipe.loss.at(step).feature_distillation
        if weight == CRASHES and step == 1:
            os._exit(1)
        state["level"] += gain(weight, step)
        state["applied"].append(weight)
        done = step + 1
        if done % recipe.training.evaluate_every == 0:
            text = json.dumps(state)
            saves = done % recipe.training.checkpoint_every == 0 or done == recipe.training.steps
            save = (lambda path, text=text: path.write_text(text)) if saves else None
            reporter.milestone(done, {parts.METRIC: state["level"]}, save)


class Last:
    """Keeps what a training reports last, and its checkpoint."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.value = math.nan

    def log(self, step: int, metrics: Any) -> None:
        pass

    def milestone(self, step: int, metrics: Any, save: Any) -> None:
        self.value = metrics.get(parts.METRIC, self.value)
        if save and self.path:
            save(self.path)


def test_the_worst_take_over_from_the_best_and_nobody_else_changes(tmp_path: Path) -> None:
    scores = {f"trial-{n:03d}": score for n, score in enumerate([0.5, 0.1, 0.9, 0.3, 0.2, 0.7])}
    recipes = {name: base(tmp_path).updated({PATH: 10.0 + n}) for n, name in enumerate(scores)}
    parents = set()
    for seed in range(20):
        takeovers = population(seed=seed).turn(4, scores, recipes)
        assert takeovers == population(seed=seed).turn(4, dict(reversed(scores.items())), recipes)
        assert sorted(takeovers) == ["trial-001", "trial-003", "trial-004"]  # 0.34 of 6, rounded up
        parents |= {takeover.parent for takeover in takeovers.values()}
    assert parents == {"trial-000", "trial-002", "trial-005"}
    lowest = population(space=replace(space(), mode="min")).turn(4, scores, recipes)
    assert sorted(lowest) == ["trial-000", "trial-002", "trial-005"]
    assert len(population(quantile=0.5).turn(4, dict(list(scores.items())[:3]), recipes)) == 1


def test_weights_change_by_a_fifth_or_a_quarter_or_are_drawn_anew(tmp_path: Path) -> None:
    scores = {"trial-000": 1.0, "trial-001": 0.0}
    recipes = {name: base(tmp_path) for name in scores}

    def found(resample: float) -> list[float]:
        turns = [population(resample=resample, seed=seed).turn(4, scores, recipes) for seed in range(200)]
        return [turn["trial-001"].weights[PATH] for turn in turns]

    moved = found(0.0)
    assert set(moved) == {80.0, 125.0} and 60 < moved.count(80.0) < 140
    anew = np.log10(found(1.0))
    assert anew.min() >= 0 and anew.max() <= 3
    assert np.histogram(anew, bins=3, range=(0, 3))[0].min() > 45  # even by the logarithm
    assert 25 < sum(weight not in (80.0, 125.0) for weight in found(0.25)) < 75


@pytest.mark.parametrize(
    ("parameter", "value", "wanted"),
    [
        (Parameter(path=PATH, distribution="uniform", low=1.0, high=2.0), 1.9, {1.9 * 0.8, 2.0}),
        (Parameter(path=PATH, distribution="uniform", low=1.0, high=3.0, step=0.5), 1.5, {1.0, 2.0}),
        (Parameter(path=PATH, distribution="int_uniform", low=1, high=9, step=2), 5, {3.0, 7.0}),
        (Parameter(path=PATH, distribution="log_int_uniform", low=1, high=100), 40, {32.0, 50.0}),
        (Parameter(path=PATH, distribution="choice", values=(4.0, 1.0, 2.0)), 2.0, {1.0, 4.0}),
        (Parameter(path=PATH, distribution="choice", values=(1.0, 2.0)), 2.0, {1.0, 2.0}),
    ],
)
def test_changed_and_drawn_weights_could_have_been_suggested(
    parameter: Parameter, value: float, wanted: set[float]
) -> None:
    random = np.random.default_rng(0)
    moved = {changed(parameter, value, random) for _ in range(50)}
    assert sorted(moved) == pytest.approx(sorted(wanted))
    assert all(parameter.contains(each) for each in moved)
    drawn = {draw(parameter, random) for _ in range(300)}
    assert all(parameter.contains(each) for each in drawn)
    assert parameter.size > 10 or len(drawn) == parameter.size


def test_turns_lie_where_there_is_an_evaluation(tmp_path: Path) -> None:
    training = base(tmp_path).training
    assert turn_steps(SchedulerConfig(name="pbt"), training) == [2, 4, 6, 8, 10, 12]
    longer = training.model_copy(update={"steps": 50})
    assert turn_steps(SchedulerConfig(name="pbt"), longer) == [12, 24, 36, 48, 50]
    for interval, words in ((12, "leaves no turn"), (3, "not at every turn")):
        with pytest.raises(UserError, match=words):
            turn_steps(SchedulerConfig(name="pbt", perturbation_interval=interval), training)
    for options, words in (({"trials": 1}, "nothing to take over"), ({"backend": "train"}, "--backend process")):
        with pytest.raises(UserError, match=words):
            make_population(space(), base(tmp_path), **{"trials": 4, "seed": 0, "backend": "process"} | options)


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory, mlflow_database: bytes) -> Iterator[Tracker]:
    out = tmp_path_factory.mktemp("populations")
    (out / "mlflow.db").write_bytes(mlflow_database)
    tracker = Tracker(f"sqlite:///{out}/mlflow.db", artifacts=out / "artifacts")
    yield tracker
    tracker.close()


def run(tracker: Tracker, key: str, folder: Path, plan: Any) -> StudyResult:
    params = {"study.scheduler": "pbt", "study.metric": parts.METRIC}
    study = tracker.start(key, "study", params=params, tags={"study": key}, key=key, reopen=True)
    result = run_study(plan, Recorder(tracker, study, {"study": key}))
    study.finish("completed")
    assert tracker.flush() == 0 and tracker.spool.problems() == []
    return result


def member_runs(tracker: Tracker, key: str) -> dict[str, Any]:
    wanted = f"tags.`siclip.study` = '{key}' and tags.`siclip.kind` = 'trial'"
    return {run.info.run_name: run for run in tracker.client.search_runs([tracker.experiment_id], wanted)}


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]


def outcome(result: StudyResult) -> list[tuple[Any, ...]]:
    return [(trial.values, trial.value, trial.state, trial.steps) for trial in result.trials]


def plan_of(folder: Path, data: Path, weights: list[float], **more: Any) -> Any:
    searcher = make_searcher(
        space(), seed=0, num_trials=len(weights), max_steps=STEPS, study_name="p", storage=folder / "optuna.db",
        points_to_evaluate=[{PATH: weight} for weight in weights],
    )  # fmt: skip
    given = {"base": base(data), "searcher": searcher, "trials": len(weights), "run": follow, "concurrent": 2}
    return parts.plan(folder, data, [], **{**given, "population": population(), **more})


class Silent:
    """A recorder that writes nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


def test_nobody_goes_on_before_the_turn_although_tune_tells_late_that_a_stretch_ended(tmp_path: Path) -> None:
    recorder: Any = Silent()
    conductor = PopulationConductor(plan_of(tmp_path, tmp_path, [100.0, 900.0]), recorder)

    def begin(tune_id: str) -> dict[str, Any]:
        values = conductor.suggest(tune_id)
        conductor.started(SimpleNamespace(trial_id=tune_id))
        return dict(values)

    def report(tune_id: str, step: int, value: float) -> None:
        figures = {parts.METRIC: value, "cost/seconds": 1.0}
        seeds = {"0": {"metrics": figures, "history": []}}
        conductor.reported(tune_id, {"step": step, "seeds": seeds, **figures})

    assert [begin("a"), begin("b")] == [{PATH: 100.0}, {PATH: 900.0}]
    report("a", 4, 0.9)
    conductor.ended("a", False)
    assert conductor.suggest("early") is None  # the other one is on its way
    report("b", 4, 0.1)  # and now is there, but Tune has not said so
    assert begin("c") == {PATH: 100.0}
    assert conductor.journal.turns == [4]
    assert conductor.suggest("early") is None
    conductor.ended("b", False)
    taken = begin("d")
    assert (taken[PATH], taken["loss.schedule"][0]["step"]) == (100.0, 4)
    assert json.loads((tmp_path / "replay" / "d.json").read_text())["until"] == 8
    for tune_id, value in (("c", 0.9), ("d", 0.8)):
        report(tune_id, 8, value)
    assert conductor.remaining == 2  # one stretch each
    conductor.journal.close()


@pytest.mark.slow
def test_a_population_is_recorded_as_schedules_that_compute_the_same(
    own_ray: None, tmp_path: Path, tracker: Tracker, digits: Path
) -> None:
    folder = tmp_path / "p"
    result = run(tracker, "p", folder, plan_of(folder, digits, WEIGHTS))
    runs = member_runs(tracker, "p")
    assert [trial.state for trial in result.trials] == ["completed"] * 6
    assert {member.data.tags["siclip.state"] for member in runs.values()} == {"completed"}
    happened = events(folder)
    turns = [event for event in happened if event["event"] == "turned"]
    assert [turn["step"] for turn in turns] == [4, 8] and all(len(turn["changes"]) == 3 for turn in turns)

    first: dict[str, int] = {}
    for turn in turns:
        results = [event for event in happened if event["event"] == "result" and event["step"] == turn["step"]]
        at = {event["trial"]: event["metrics"][parts.METRIC] for event in results}
        order = sorted(at, key=at.__getitem__)
        assert set(turn["changes"]) == set(order[:3])
        assert {parent for parent, _ in turn["changes"].values()} <= set(order[3:])
        first = dict.fromkeys(turn["changes"], turn["step"]) | first

    for trial in result.trials:
        stages = json.loads(runs[trial.trial_id].data.tags["siclip.schedule"])
        recorded = [next(s["weights"][PATH] for s in reversed(stages) if s["step"] <= step) for step in range(STEPS)]
        assert trial.checkpoint is not None
        assert json.loads(trial.checkpoint.read_text())["applied"] == recorded  # what was applied
        assert trial.value == pytest.approx(
            sum(gain(weight, step) for step, weight in enumerate(recorded)), abs=1e-12
        )
        again = Last()
        written = load_recipe(folder / "schedules" / f"{trial.trial_id}.yaml")
        follow(written, again, None)
        assert again.value == trial.value
        assert written.hash == trial.recipe.hash == runs[trial.trial_id].data.tags["siclip.recipe_hash"]
        assert "siclip.identity" not in runs[trial.trial_id].data.tags
        points = tracker.client.get_metric_history(runs[trial.trial_id].info.run_id, f"schedule/{PATH}")
        assert points[-1].value == stages[-1]["weights"][PATH]
    assert max(trial.value for trial in result.trials) > max(
        sum(gain(weight, step) for step in range(STEPS)) for weight in WEIGHTS
    )

    (study,) = read_studies(Store(tracker.uri), Selection(studies=("p",)))
    section = schedules(study)
    assert section is not None
    (table,) = [block for block in section.blocks if isinstance(block, Table)]
    best = json.loads(runs[result.best.trial_id].data.tags["siclip.schedule"])
    shown = [(row[0].value, row[1].text, row[2].value) for row in table.rows]
    assert shown == [(stage["step"], stage["parent"] or "—", stage["weights"][PATH]) for stage in best]

    told = optuna.load_study(study_name="p", storage=f"sqlite:///{folder}/optuna.db").trials
    for trial in told:
        name, weight = trial.user_attrs["trial_id"], trial.params[PATH]
        until = first.get(name, STEPS)
        wanted = {s: sum(gain(weight, step) for step in range(s)) for s in range(2, until + 1, 2)}
        assert trial.intermediate_values == pytest.approx(wanted), name
        assert trial.state.name == ("PRUNED" if name in first else "COMPLETE")
    assert not list((folder / "checkpoints").glob("*/seed-0.step-4.pt"))


@pytest.mark.long
def test_a_population_that_was_cut_short_at_any_line_ends_as_it_would_have(
    own_ray: None, tmp_path: Path, tracker: Tracker, digits: Path
) -> None:
    weights = WEIGHTS[:3]
    whole = run(tracker, "whole", tmp_path / "whole", plan_of(tmp_path / "whole", digits, weights))
    lines = (tmp_path / "whole" / "journal.jsonl").read_text().splitlines(keepends=True)
    turned = [number for number, line in enumerate(lines) if '"turned"' in line]
    open_end = [line for line in lines if '"ended"' not in line and '"told"' not in line]
    cuts = {str(kept): lines[:kept] for kept in (turned[0], turned[0] + 1, turned[1] + 3)} | {"end": open_end}
    for kept, rest in cuts.items():
        folder = tmp_path / f"cut-{kept}"
        folder.mkdir()
        (folder / "journal.jsonl").write_text("".join(rest))
        result = run(tracker, f"cut-{kept}", folder, plan_of(folder, digits, weights))
        assert outcome(result) == outcome(whole), kept


@pytest.mark.slow
def test_a_member_that_fails_is_out_and_the_others_go_on(
    own_ray: None, tmp_path: Path, tracker: Tracker, digits: Path
) -> None:
    result = run(tracker, "fails", tmp_path, plan_of(tmp_path, digits, [100.0, CRASHES, 30.0, 1.0]))
    assert [trial.state for trial in result.trials] == ["completed", "failed", "completed", "completed"]
    assert "died" in result.trials[1].reason and result.trials[1].steps == 0
    turns = [event for event in events(tmp_path) if event["event"] == "turned"]
    assert [turn["step"] for turn in turns] == [4, 8]
    assert all(len(turn["changes"]) == 1 and "trial-001" not in str(turn) for turn in turns)


@pytest.mark.slow
def test_a_member_has_the_parameters_of_a_training_by_its_schedule(
    own_ray: None, tmp_path: Path, tracker: Tracker, digits: Path, nano_teacher: Path
) -> None:
    torch.set_num_threads(1)
    small = {
        "model.name": "siclip-nano", "model.inherit": True, "teacher": str(nano_teacher), "training.threads": 1,
        "training.steps": 4, "evaluation.validation_samples": 20,
    }  # fmt: skip
    recipe = base(digits).updated(small)
    turning = population(interval=2)
    result = run(
        tracker, "real", tmp_path, plan_of(tmp_path, digits, [100.0, 5.0], base=recipe, population=turning, run=None)
    )
    (taken,) = [trial for trial in result.trials if "loss.schedule" in trial.values]
    train_recipe(taken.recipe, Last(tmp_path / "again.pt"), None)
    assert taken.checkpoint is not None
    member, again = (read_checkpoint(path) for path in (taken.checkpoint, tmp_path / "again.pt"))
    assert member["training"]["step"] == again["training"]["step"] == 4
    for name, value in again["model"].items():
        assert torch.equal(value, member["model"][name]), name
    objective = member["training"]["objective"]
    assert all(torch.equal(value, objective[name]) for name, value in again["training"]["objective"].items())
