"""The simulator on curves that a formula generates: clock, decisions, fitted landscape, and what it refuses."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from typer.testing import CliRunner

from siclip.errors import UserError
from siclip_platform.cli import app
from siclip_platform.metrics import METRICS
from siclip_platform.simulation.curves import Curve, Curves, Landscape, encode, load_curves
from siclip_platform.simulation.simulator import Simulation, budget_seconds, parse_policy, simulate
from siclip_platform.spaces.definition import SearchSpace
from siclip_platform.spaces.load import load_space
from siclip_platform.spaces.parsing import parse_space

MILESTONES = range(8, 49, 8)
SECONDS = (5.0, 2.0, 2.0, 2.0, 2.0, 2.0)


def score(values: dict[str, Any], step: int) -> float:
    """Best at a learning rate of 5e-3 and without pair matching; increases with every step."""
    height = 0.6 - 0.2 * abs(math.log10(values["training.learning_rate"]) + 2.3) - 0.1 * values["loss.pair_matching"]
    return float(height * (1 - math.exp(-step / 16)))


def curve(values: dict[str, Any]) -> Curve:
    return Curve(values=values, scores={step: score(values, step) for step in MILESTONES}, seconds=SECONDS)


@pytest.fixture(scope="module")
def curves() -> Curves:
    space = load_space("wikd")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=5))
    drawn = [space.suggest(study.ask()) for _ in range(120)]
    return Curves(name="made-up", space="wikd", metric=space.metric, steps=48, curves=tuple(map(curve, drawn)))


@pytest.fixture(scope="module")
def landscape(curves: Curves) -> Landscape:
    return Landscape(curves)


class Formula(Landscape):
    """The formula itself instead of a fit, which would take time."""

    def __init__(self, curves: Curves) -> None:
        self.curves = curves
        self.recorded = self.space = load_space("wikd")

    def scores(self, values: Any) -> list[float]:
        return [score(values, step) for step in MILESTONES]


def test_the_fit_is_close_to_recorded_and_to_unrecorded_settings(curves: Curves, landscape: Landscape) -> None:
    recorded = curves.curves[7]
    assert landscape.scores(recorded.values) == pytest.approx(list(recorded.scores.values()), abs=0.01)
    space = landscape.space
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=6))
    estimated, true = [], []
    for _ in range(60):
        values = space.suggest(study.ask())
        estimated.append(landscape.scores(values)[-1])
        true.append(score(values, 48))
    mean = sum(true) / len(true)
    explained = 1 - sum((f - t) ** 2 for f, t in zip(estimated, true, strict=True)) / sum(
        (t - mean) ** 2 for t in true
    )
    assert explained > 0.5 and landscape.fit_quality() > 0.5
    assert max(estimated) <= max(value for c in curves.curves for value in c.scores.values() if value is not None)


def test_a_setting_is_encoded_as_numbers() -> None:
    text = """\
name: t
metric: validation/mean_recall@1
parameters:
  training.learning_rate: {distribution: log_uniform, low: 1e-4, high: 1e-2}
  training.weight_decay: {distribution: uniform, low: 0, high: 2}
  loss.pair_matching: {distribution: choice, values: [0, 1]}
  loss.pair_matching_warmup: {distribution: uniform, low: 0, high: 1, when: {loss.pair_matching: 1}}
"""
    space = parse_space(text, "t.yaml", METRICS, None)
    values = {"training.learning_rate": 1e-3, "training.weight_decay": 0.5, "loss.pair_matching": 0.0}
    assert encode(space, values) == pytest.approx([0.5, 0.25, 1, 0, -1])
    on = values | {"loss.pair_matching": 1.0, "loss.pair_matching_warmup": 0.75}
    assert encode(space, on) == pytest.approx([0.5, 0.25, 0, 1, 0.75])


def run(curves: Curves, policy: str, *, workers: int = 2, budget: float = 60.0, seed: int = 0) -> Simulation:
    simulation = Simulation(
        Formula(curves), parse_policy(policy), workers=workers, budget=budget, seed=seed, planned=12
    )
    simulation.run()
    return simulation


def test_the_clock_without_early_stopping(curves: Curves) -> None:
    """A whole trial takes 15 s: in 60 s each of two workers completes four, with no time in between."""
    trace = run(curves, "random+none").trace
    assert [trial.ended for trial in trace.trials[:8]] == [15, 15, 30, 30, 45, 45, 60, 60]
    assert trace.complete == 8 and trace.trained_steps == 8 * 48
    best = [score(trial.config, 48) for trial in trace.trials]
    assert trace.best_at(15) == max(best[:2])
    assert trace.best_at(60) == max(best[:8])
    assert math.isnan(trace.best_at(14.9))


def test_early_stopping_leaves_time_for_more_trials(curves: Curves) -> None:
    simulation = run(curves, "random+asha")
    trace = simulation.trace
    stopped = [trial for trial in trace.trials if trial.status == "PRUNED"]
    assert {trial.steps for trial in stopped} == {16}, "the first rung of 48 steps is at 16"
    assert len(trace.trials) > 10 and trace.complete < 8
    ended = [trial for trial in trace.trials if trial.status != "RUNNING"]
    busy = sum(15 if trial.status == "COMPLETE" else 7 for trial in ended)
    assert 2 * 60 - 2 * 15 < busy <= 2 * 60
    states = [trial.state for trial in simulation.searcher.study.trials]
    assert states.count(TrialState.PRUNED) == len(stopped)
    assert states.count(TrialState.COMPLETE) == trace.complete


def test_stopped_trials_can_be_reported_as_complete(curves: Curves) -> None:
    simulation = run(curves, "random+asha+complete")
    complete = [trial for trial in simulation.searcher.study.trials if trial.state == TrialState.COMPLETE]
    early = [trial for trial in complete if max(trial.intermediate_values) < 48]
    assert early and all(trial.value == trial.intermediate_values[16] for trial in early)
    assert not any(trial.state == TrialState.PRUNED for trial in simulation.searcher.study.trials)
    assert simulation.trace.best_at(60) == run(curves, "random+asha").trace.best_at(60), (
        "random search ignores results"
    )


@pytest.mark.parametrize("policy", ["tpe+asha", "tpe+median", "tpe+hyperband", "cmaes+asha", "gp+none"])
def test_the_same_seed_gives_the_same_study(policy: str, curves: Curves) -> None:
    def settings(seed: int) -> list[dict[str, Any]]:
        return [trial.config for trial in run(curves, policy, budget=45, seed=seed).trace.trials]

    assert settings(1) == settings(1) != settings(2)


def test_policies_are_compared_at_the_same_budget(curves: Curves) -> None:
    landscape = Formula(curves)
    assert budget_seconds(landscape, workers=2, trials=5) == 45
    policies = [parse_policy("tpe+none"), parse_policy("random+none")]
    traces_of = simulate(landscape, policies, workers=2, trials=30, repetitions=3)
    means = {name: sum(trace.best_at(1e9) for trace in traces) / 3 for name, traces in traces_of.items()}
    assert means["tpe+none"] > means["random+none"], "TPE finds the optimum of this landscape"
    assert [trace.seed for trace in traces_of["tpe+none"]] == [0, 1, 2]


def part_of_wikd(parameters: str) -> SearchSpace:
    head = "name: part\nmetric: validation/mean_recall@1\nparameters:\n"
    return parse_space(head + parameters, "part.yaml", METRICS, None)


def test_a_part_of_the_recorded_space_can_be_searched(curves: Curves) -> None:
    rate = "  training.learning_rate: {distribution: log_uniform, low: 5e-4, high: 5e-3}\n"
    part = Landscape(curves, part_of_wikd(rate))
    near, far = (part.scores({"training.learning_rate": value})[-1] for value in (5e-3, 5e-4))
    assert near > far
    wider = rate.replace("5e-4", "1e-5")
    other = "  training.weight_decay: {distribution: uniform, low: 0, high: 1}\n"
    for parameters in (wider, other):
        with pytest.raises(UserError, match="where no curve was recorded"):
            Landscape(curves, part_of_wikd(parameters))
    with pytest.raises(UserError, match="the curves contain validation/mean_recall@1 alone"):
        Landscape(curves, load_space("sharing_patterns"))


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ("tpe", "no scheduler ''"),
        ("tp+asha", "did you mean 'tpe'"),
        ("tpe+ash", "did you mean 'asha'"),
        ("tpe+asha+done", "no state of stopped trials 'done'"),
    ],
)
def test_a_wrong_policy_is_refused(policy: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        parse_policy(policy)


def test_a_recorded_failure_is_ignored(curves: Curves, tmp_path: Path) -> None:
    broken = Curve(values=curves.curves[0].values, scores={8: 0.1, 16: None}, seconds=(1.0, 1.0), reason="diverged")
    file = tmp_path / "curves.json"
    file.write_text(curves.model_copy(update={"curves": (*curves.curves, broken)}).model_dump_json())
    loaded = load_curves(str(file))
    assert len(loaded.curves) == 121 and len(loaded.whole) == 120
    assert loaded.stretch_seconds == list(SECONDS)


def test_a_file_without_curves_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"give the path of a file or one of: .*digits-wikd"):
        load_curves("nothing")
    file = tmp_path / "curves.json"
    file.write_text(json.dumps({"name": "x"}))
    with pytest.raises(UserError, match="cannot be read"):
        load_curves(str(file))


def test_the_shipped_curves_match_their_space() -> None:
    curves = load_curves("digits-wikd")
    space = load_space(curves.space)
    assert curves.metric == space.metric and curves.steps == 48
    assert curves.mode == "max", "files recorded by earlier versions state the mode"
    for recorded in curves.curves:
        assert space.restrict(recorded.values) == recorded.values, "the space still contains every recorded setting"
        assert all(value is None or 0 <= value <= 1 for value in recorded.scores.values())
    assert len(curves.whole) >= 20


def test_the_command_prints_each_policy() -> None:
    result = CliRunner().invoke(
        app, ["simulate", "digits-wikd", "--policy", "random+none", "--trials", "4", "--repetitions", "2"]
    )
    assert result.exit_code == 0, result.output
    assert "random+none" in result.output and "R²" in result.output
