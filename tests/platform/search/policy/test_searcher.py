"""The searcher without Ray: suggestions, and what Optuna's storage has after each way in which a trial can end."""

from __future__ import annotations

import logging
import math
import pickle
import sqlite3
import warnings
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from siclip.errors import UserError
from siclip_platform.metrics import METRICS
from siclip_platform.search.policy.searcher import StudySearch, make_searcher, paper_point
from siclip_platform.spaces.definition import SearchSpace
from siclip_platform.spaces.load import load_space
from siclip_platform.spaces.parsing import parse_space

METRIC = "validation/mean_recall@1"
MAX_STEPS = 40
SPACE = """\
name: t
metric: validation/mean_recall@1
parameters:
  training.learning_rate: {distribution: log_uniform, low: 1e-4, high: 1e-2}
  loss.pair_matching: {distribution: choice, values: [0, 1]}
  loss.pair_head: {distribution: choice, values: [product, mlp], when: {loss.pair_matching: ">0"}}
"""


@pytest.fixture
def space() -> SearchSpace:
    return parse_space(SPACE, "t.yaml", METRICS, None)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "runs and trials" / "study#1?.db"


def make(space: SearchSpace, storage: Path | None, **options: Any) -> StudySearch:
    defaults: dict[str, Any] = {"seed": 0, "num_trials": 12, "max_steps": MAX_STEPS, "study_name": "s"}
    return make_searcher(space, storage=storage, **(defaults | options))


def result(step: int, score: float) -> dict[str, Any]:
    return {"step": step, METRIC: score, "training_iteration": 1}


def stored(path: Path) -> list[FrozenTrial]:
    """The trials, read by Optuna alone through a new connection."""
    storage = optuna.storages.RDBStorage("sqlite://", engine_kwargs={"creator": lambda: sqlite3.connect(path)})
    trials: list[FrozenTrial] = optuna.load_study(study_name="s", storage=storage).trials
    return trials


def test_a_trials_state_in_optuna_is_how_it_ended(space: SearchSpace, database: Path) -> None:
    search = make(space, database)
    for trial_id in ("complete", "stopped", "nan", "error", "unstarted", "silent", "late_nan"):
        assert search.suggest(trial_id)
    for trial_id in ("complete", "stopped", "nan", "error"):
        search.on_trial_result(trial_id, result(10, 0.1))
    search.on_trial_result("complete", result(20, 0.3))
    search.on_trial_complete("complete", result(MAX_STEPS, 0.5))
    search.on_trial_complete("stopped", result(20, 0.2))  # as under ASHA: the last result comes with the end
    search.on_trial_complete("nan", result(20, math.nan))
    search.on_trial_complete("error", error=True)
    search.on_trial_complete("unstarted")
    search.on_trial_result("silent", result(20, 0.25))
    search.on_trial_complete("silent")  # Tune passes no result when it stops a paused trial
    search.on_trial_complete("late_nan", result(MAX_STEPS, math.inf))

    trials = {trial.user_attrs["trial_id"]: trial for trial in stored(database)}
    assert {trial_id: trial.state for trial_id, trial in trials.items()} == {
        "complete": TrialState.COMPLETE,
        "stopped": TrialState.PRUNED,
        "nan": TrialState.FAIL,
        "error": TrialState.FAIL,
        "unstarted": TrialState.FAIL,
        "silent": TrialState.PRUNED,
        "late_nan": TrialState.FAIL,
    }
    assert trials["complete"].value == 0.5
    assert trials["complete"].intermediate_values == {10: 0.1, 20: 0.3, MAX_STEPS: 0.5}
    assert trials["stopped"].intermediate_values == {10: 0.1, 20: 0.2}
    assert trials["stopped"].value == 0.2
    assert trials["error"].value is None
    assert trials["stopped"].user_attrs["step"] == 20
    assert trials["unstarted"].user_attrs["step"] == 0


def test_a_stopped_trial_is_never_the_best(space: SearchSpace) -> None:
    search = make(space, None)
    search.suggest("a")
    search.suggest("b")
    search.on_trial_complete("a", result(10, 0.9))  # better so far, but stopped early
    search.on_trial_complete("b", result(MAX_STEPS, 0.5))
    assert search.study.best_trial.user_attrs["trial_id"] == "b"


def test_repeated_results_change_nothing(space: SearchSpace, database: Path) -> None:
    search = make(space, database)
    search.suggest("a")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step, score in ((10, 0.1), (20, 0.2), (10, 0.7), (30, 0.3)):
            search.on_trial_result("a", result(step, score))
        search.on_trial_complete("a", result(MAX_STEPS, 0.4))
        search.on_trial_complete("a", result(MAX_STEPS, 0.8))
        search.on_trial_result("a", result(MAX_STEPS, 0.9))
    (trial,) = stored(database)
    assert trial.intermediate_values == {10: 0.1, 20: 0.2, 30: 0.3, MAX_STEPS: 0.4}
    assert trial.value == 0.4


def test_suggestions_are_values_by_dotted_path(space: SearchSpace) -> None:
    search = make(space, None)
    for number in range(30):
        config = search.suggest(str(number))
        assert isinstance(config, dict)
        assert set(config) <= set(space.paths)
        assert ("loss.pair_head" in config) == (config["loss.pair_matching"] > 0)
        assert space.restrict(config) == config == search.study.trials[number].params
        search.on_trial_complete(str(number), result(MAX_STEPS if number % 3 else 10, number / 30))


def test_tpe_learns(space: SearchSpace) -> None:
    """TPE comes much closer to the best learning rate than its random startup trials."""
    search = make(space, None, num_trials=60)
    rates = []
    for number in range(60):
        config = search.suggest(str(number))
        assert isinstance(config, dict)
        rates.append(config["training.learning_rate"])
        score = -abs(math.log10(rates[-1]) + 3)
        search.on_trial_complete(str(number), result(MAX_STEPS, score))
    distances = [abs(math.log10(rate) + 3) for rate in rates]
    assert sum(distances[-20:]) < 0.5 * sum(distances[:20])


def test_suggestions_follow_from_the_seed(space: SearchSpace) -> None:
    def run(seed: int) -> list[Any]:
        search = make(space, None, seed=seed, num_trials=9)
        configs = []
        for number in range(9):
            configs.append(search.suggest(str(number)))
            search.on_trial_complete(str(number), result(MAX_STEPS, number % 4))
        return configs

    assert run(0) == run(0) != run(1)


def test_starting_points_come_first_and_only_once(space: SearchSpace, database: Path) -> None:
    points = [
        {"training.learning_rate": 1e-3, "loss.pair_matching": 0.0},
        {},
        {"training.learning_rate": 2e-3},
    ]
    search = make(space, database, points_to_evaluate=points)
    assert search.suggest("a") == points[0]
    again = make(space, database, points_to_evaluate=points)
    config = again.suggest("b")
    assert isinstance(config, dict) and config["training.learning_rate"] == 2e-3
    later = again.suggest("c")
    assert isinstance(later, dict) and later["training.learning_rate"] not in (1e-3, 2e-3)


def test_the_papers_defaults_are_a_starting_point() -> None:
    """Against the method's own values: 2000, 1 and 1; no pair matching before the third experiment."""
    assert paper_point(load_space("wikd")) == {
        "loss.feature_distillation": 2000.0,
        "loss.contrastive_relational": 1.0,
        "loss.interactive_contrastive": 1.0,
        "loss.pair_matching": 0.0,
        "model.image_sharing": "qk:0-0",
        "model.text_sharing": "qk:0-0-1-1",
        "training.learning_rate": 1e-3,
    }
    search = make(load_space("wikd"), None)
    assert search.suggest("a") == paper_point(load_space("wikd"))


@pytest.mark.parametrize(
    "point",
    [
        {"training.learning_rate": 1.0},
        {"training.weight_decay": 0.1},
        {"loss.pair_head": "mlp"},
        {"loss.pair_matching": 0.0, "loss.pair_head": "mlp"},
        {"loss.pair_matching": 0.5},
    ],
)
def test_a_starting_point_outside_the_space_is_refused(space: SearchSpace, point: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=list(point)[-1]):
        make(space, None, points_to_evaluate=[point])


def test_a_searcher_can_be_pickled(space: SearchSpace, database: Path) -> None:
    search = make(space, database)
    search.suggest("a")
    copy = pickle.loads(pickle.dumps(search))
    copy.on_trial_complete("a", result(MAX_STEPS, 0.5))
    assert stored(database)[0].state == TrialState.COMPLETE


def test_a_study_of_another_space_is_refused(space: SearchSpace, database: Path) -> None:
    make(space, database).suggest("a")
    other = parse_space(SPACE.replace("1e-2", "2e-2"), "t.yaml", METRICS, None)
    with pytest.raises(UserError, match=r"'s' in .*study#1\?.db searched another space"):
        make(other, database)
    make(other, database, study_name="t").suggest("a")


def test_a_storage_that_cannot_be_used_is_refused(space: SearchSpace, tmp_path: Path) -> None:
    text = tmp_path / "text.db"
    text.write_text("not a database " * 100)
    for path in (text, text / "below.db", tmp_path):
        with pytest.raises(UserError, match=f"storage {path} cannot be used"):
            make(space, path)


def test_a_lost_storage_is_refused_by_name(space: SearchSpace, database: Path, tmp_path: Path) -> None:
    search = make(space, database)
    search.suggest("a")
    search.save(str(tmp_path / "searcher.pkl"))
    database.unlink()
    fresh = make(space, None)
    with pytest.raises(UserError, match="'s' is no longer in its storage"):
        fresh.restore(str(tmp_path / "searcher.pkl"))


def test_a_searcher_prints_and_warns_nothing(
    space: SearchSpace, database: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    optuna.logging.set_verbosity(logging.INFO)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        search = make(space, database, points_to_evaluate=[{"loss.pair_matching": 1.0}], num_trials=3)
        for number in range(6):
            search.suggest(str(number))
            search.on_trial_result(str(number), result(10, 0.1))
            search.on_trial_complete(str(number), result(MAX_STEPS - number % 2, math.nan if number == 3 else 0.5))
    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if record.levelno >= logging.INFO] == []
