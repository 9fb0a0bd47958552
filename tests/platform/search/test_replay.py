"""A searcher whose database was lost gets it again from the journal, or the study is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from study_parts import METRIC, STEPS, plan

from siclip.errors import UserError
from siclip_platform.metrics import METRICS
from siclip_platform.search.ledger.journal import Journal, trial_name
from siclip_platform.search.policy.searcher import StudySearch, make_searcher
from siclip_platform.search.replay import DATABASE, restore_searcher
from siclip_platform.search.study import StudyPlan
from siclip_platform.spaces.parsing import parse_space

SPACE = """\
name: s
metric: validation/mean_recall@1
parameters:
  training.weight_decay: {distribution: uniform, low: 0, high: 1}
  training.learning_rate: {distribution: log_uniform, low: 1.0e-4, high: 1.0e-2}
sampler: {name: tpe, startup_trials: 3}
"""
TRIALS = 8


def searcher(folder: Path, seed: int = 5) -> StudySearch:
    space = parse_space(SPACE, "s.yaml", METRICS, None)
    storage = folder / DATABASE
    return make_searcher(space, seed=seed, num_trials=TRIALS, max_steps=STEPS, study_name="s", storage=storage)


def run(search: StudySearch, journal: Journal, numbers: range) -> None:
    """Run trials two at a time; some are stopped and one fails."""
    for first in numbers[::2]:
        for number in (first, first + 1):
            journal.suggested(trial_name(number), search.suggest(trial_name(number)))  # type: ignore[arg-type]
        for number in (first + 1, first):
            name = trial_name(number)
            for step in range(2, STEPS + 1, 2) if number % 3 else (2, 4):
                metrics = {METRIC: number / 10 + step / 100}
                journal.result(name, step, metrics, {"0": metrics})
                search.on_trial_result(name, {"step": step, **metrics})
            entry = journal.entries[name]
            state: Any = "failed" if number == 4 else "completed" if number % 3 else "pruned"
            journal.ended(name, state, entry.step, 1.0)
            search.on_trial_complete(name, result={"step": entry.step, **entry.last}, error=number == 4)
            journal.told(name)


def trials(folder: Path) -> list[tuple[Any, ...]]:
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{folder / DATABASE}")
    return [(t.number, t.state, t.params, t.values, t.intermediate_values, t.user_attrs) for t in study.trials]


@pytest.fixture
def begun(tmp_path: Path) -> tuple[StudyPlan, Journal]:
    journal = Journal(tmp_path)
    search = searcher(tmp_path)
    run(search, journal, range(6))
    return plan(tmp_path, tmp_path, [], searcher=search, trials=TRIALS), journal


def test_a_lost_database_is_written_again_and_the_search_continues_as_before(
    begun: tuple[StudyPlan, Journal], tmp_path: Path
) -> None:
    before, journal = begun
    expected = trials(tmp_path)
    going_on = [before.searcher.suggest(trial_name(number)) for number in (6, 7)]
    (tmp_path / DATABASE).unlink()
    again = plan(tmp_path, tmp_path, [], searcher=searcher(tmp_path), trials=TRIALS)
    restore_searcher(again, journal)
    assert trials(tmp_path) == expected
    assert [again.searcher.suggest(trial_name(number)) for number in (6, 7)] == going_on
    after = trials(tmp_path)
    restore_searcher(again, journal)  # nothing is lost any more
    assert trials(tmp_path) == after


def test_a_database_that_cannot_be_written_again_is_refused(begun: tuple[StudyPlan, Journal], tmp_path: Path) -> None:
    _, journal = begun
    (tmp_path / DATABASE).unlink()
    other = plan(tmp_path, tmp_path, [], searcher=searcher(tmp_path, seed=6), trials=TRIALS)
    with pytest.raises(UserError, match=r"optuna\.db, the database of the search, lacks trials .*restore it"):
        restore_searcher(other, journal)


def test_a_database_that_lacks_some_trials_is_refused(begun: tuple[StudyPlan, Journal], tmp_path: Path) -> None:
    before, journal = begun
    journal.suggested(trial_name(6), {"training.weight_decay": 0.5})
    with pytest.raises(UserError, match="lacks trials"):
        restore_searcher(before, journal)
