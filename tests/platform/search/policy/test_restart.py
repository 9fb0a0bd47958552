"""A searcher that is created again on its storage after a kill, or saved and restored, resumes its study."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from siclip_platform.metrics import METRICS
from siclip_platform.search.policy.searcher import StudySearch, make_searcher
from siclip_platform.spaces.definition import SearchSpace
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


def test_a_restored_searcher_suggests_what_the_saved_one_would_have(
    space: SearchSpace, database: Path, tmp_path: Path
) -> None:
    def advance(search: StudySearch, start: int, stop: int) -> list[Any]:
        configs: list[Any] = []
        for number in range(start, stop):
            configs.append(search.suggest(str(number)))
            search.on_trial_complete(str(number), result(MAX_STEPS, number % 5))
        return configs

    whole = advance(make(space, None), 0, 12)
    first = make(space, database)
    before = advance(first, 0, 6)
    first.save(str(tmp_path / "searcher.pkl"))
    second = make(space, database)
    second.restore(str(tmp_path / "searcher.pkl"))
    assert before + advance(second, 6, 12) == whole
    assert len(stored(database)) == 12


def test_a_restored_searcher_has_what_its_storage_received_after_the_save(
    space: SearchSpace, database: Path, tmp_path: Path
) -> None:
    first = make(space, database)
    first.suggest("finished")
    first.suggest("running")
    first.on_trial_result("running", result(10, 0.1))
    first.save(str(tmp_path / "searcher.pkl"))
    first.on_trial_result("running", result(20, 0.2))
    first.on_trial_complete("finished", result(MAX_STEPS, 0.5))

    second = make(space, database)
    second.restore(str(tmp_path / "searcher.pkl"))
    second.on_trial_complete("finished", result(MAX_STEPS, 0.1))  # Tune ran it again
    second.on_trial_result("running", result(20, 0.9))
    second.on_trial_complete("running", result(MAX_STEPS, 0.6))
    finished, running = stored(database)
    assert (finished.state, finished.value) == (TrialState.COMPLETE, 0.5)
    assert (running.state, running.value) == (TrialState.COMPLETE, 0.6)
    assert running.intermediate_values == {10: 0.1, 20: 0.2, MAX_STEPS: 0.6}


def test_a_killed_study_resumes_as_if_it_had_not_been_killed(space: SearchSpace, database: Path) -> None:
    """A new searcher on the same storage returns the same values for known names, and the next ones for new names."""

    def end(search: StudySearch, number: int) -> None:
        search.on_trial_result(str(number), result(10, number / 20))
        search.on_trial_complete(str(number), result(10 if number % 3 else MAX_STEPS, number % 5))

    whole = make(space, None)
    undisturbed = []
    for number in range(7):
        undisturbed.append(whole.suggest(str(number)))
        end(whole, number)
    resumed = []
    for number in range(7):  # killed in every trial after its suggestion
        search = make(space, database)
        assert search.suggest(str(number)) == undisturbed[number]
        search = make(space, database)
        resumed.append(search.suggest(str(number)))
        end(search, number)
        end(search, number)
    assert resumed == undisturbed
    assert len(stored(database)) == 7
    assert make(space, database).suggest("3") == undisturbed[3], "a finished trial is known too"
    assert len(stored(database)) == 7


def test_a_trial_that_a_kill_left_without_a_name_becomes_the_next_one(space: SearchSpace, database: Path) -> None:
    point = {"training.learning_rate": 1e-3, "loss.pair_matching": 0.0}
    make(space, database, points_to_evaluate=[point]).study.ask()  # the driver dies here
    search = make(space, database, points_to_evaluate=[point])
    assert search.suggest("a") == point, "a starting point is not lost"
    assert [trial.state for trial in stored(database)].count(TrialState.RUNNING) == 1
    assert search.suggest("b") != point
