"""A population's conductor, called as Ray Tune calls it, but without Ray or training."""

from __future__ import annotations

import functools
import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest

from siclip.errors import UserError
from siclip_platform.recipes.load import load_recipe
from siclip_platform.search.population_conductor import PopulationConductor
from siclip_platform.search.study import StudyPlan
from siclip_platform.search.trial.seed_run import Milestone, SeedRun
from siclip_platform.studies.confirmation import confirm_search
from tests.support import study_parts as parts
from tests.support.population_parts import PATH, STEPS, follow, plan_of

WEIGHTS = [100.0, 300.0, 900.0]


class Silent:
    """A recorder that records nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


class FakeExperiment:
    """An experiment that keeps what it prints."""

    def __init__(self) -> None:
        self.display = self
        self.printed: list[str] = []

    def say(self, text: str) -> None:
        self.printed.append(text)


class Driven(PopulationConductor):
    """A conductor that a test calls as Ray Tune would."""

    def __init__(self, plan: StudyPlan) -> None:
        recorder: Any = Silent()
        super().__init__(plan, recorder)

    def start(self, tune_id: str) -> dict[str, Any]:
        values = self.suggest(tune_id)
        self.started(SimpleNamespace(trial_id=tune_id, error_file=None, pickled_error_file=None))
        return dict(values)

    def report(self, tune_id: str, step: int, value: float) -> None:
        metrics = {parts.METRIC: value, "cost/seconds": 1.0}
        seeds = {"0": {"metrics": metrics, "history": []}}
        self.reported(tune_id, {"step": step, "seeds": seeds, **metrics})

    def part(self, tune_id: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.plan.folder / "replay" / f"{tune_id}.json").read_text())
        return found


def test_members_wait_for_the_end_of_a_generation_though_tune_reports_it_late(tmp_path: Path) -> None:
    conductor = Driven(plan_of(tmp_path, tmp_path, [100.0, 900.0]))
    assert [conductor.start("a"), conductor.start("b")] == [{PATH: 100.0}, {PATH: 900.0}]
    conductor.report("a", 4, 0.9)
    conductor.ended("a", False)
    assert conductor.suggest("early") is None  # the other member is still training
    conductor.report("b", 4, 0.1)  # it has reached the end, but Tune has not reported so
    assert conductor.start("c") == {PATH: 100.0}
    assert conductor.journal.generations == [4]
    assert conductor.suggest("early") is None
    conductor.ended("b", False)
    copied = conductor.start("d")
    assert (copied[PATH], copied["loss.schedule"][0]["step"]) == (100.0, 4)
    assert conductor.part("d")["until"] == 8
    for tune_id, value in (("c", 0.9), ("d", 0.8)):
        conductor.report(tune_id, 8, value)
    assert conductor.remaining == 2  # one part each
    conductor.journal.close()


@pytest.mark.parametrize(
    "scores", [[0.1, math.nan, 0.5], [math.nan, 0.5, 0.1], [0.5, math.nan, math.nan], [math.nan] * 3]
)
def test_a_member_without_a_finite_score_is_not_copied_before_tune_reports_its_failure(
    tmp_path: Path, scores: list[float]
) -> None:
    conductor = Driven(plan_of(tmp_path, tmp_path, [100.0, 300.0, 900.0]))
    for number in range(3):
        conductor.start(f"tune{number}")
    for number, value in enumerate(scores):
        conductor.report(f"tune{number}", 4, value)
    conductor.suggest("early")
    assert conductor.journal.generations == [4]
    copies = {entry.name: entry.parents for entry in conductor.journal.in_flight() if entry.parents}
    able = sorted((value, f"trial-{number:03d}") for number, value in enumerate(scores) if math.isfinite(value))
    assert copies == ({able[0][1]: [(4, able[-1][1])]} if len(able) > 1 else {})
    for number, value in enumerate(scores):
        conductor.ended(f"tune{number}", not math.isfinite(value))
    assert [entry.name for entry in conductor.journal.in_flight()] == sorted(name for _, name in able)
    conductor.journal.close()


def test_a_member_has_the_starting_recipe_and_saves_at_the_end_of_every_generation(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, tmp_path, [100.0, 300.0])
    conductor = Driven(plan)
    conductor.start("a")
    assert (conductor.part("a")["save_every"], plan.base.training.checkpoint_every) == (4, 0)
    conductor.report("a", STEPS, 0.5)
    conductor.ended("a", False)
    result = conductor.result()
    assert result.best.recipe == plan.base
    experiment: Any = FakeExperiment()
    confirm_search(experiment, result, plan.base, 2)
    assert "the recipe itself" in experiment.printed[0]
    assert load_recipe(tmp_path / "schedules" / "trial-000.yaml") == plan.base
    conductor.journal.close()


def test_a_copied_training_state_stays_though_its_parent_fails_first(tmp_path: Path) -> None:
    conductor = Driven(plan_of(tmp_path, tmp_path, [100.0, 300.0, 900.0]))
    for number, score in enumerate([0.9, 0.5, 0.1]):
        conductor.start(f"tune{number}")
        checkpoint = tmp_path / "checkpoints" / f"tune{number}" / "seed-0.step-4.pt"
        checkpoint.parent.mkdir(parents=True)
        checkpoint.touch()
        conductor.report(f"tune{number}", 4, score)
        conductor.ended(f"tune{number}", False)
    assert conductor.journal.entries["trial-002"].parents == [(4, "trial-000")]
    for tune_id in ("parent", "other", "child"):
        conductor.start(tune_id)
        if tune_id == "parent":
            conductor.ended(tune_id, True)
    copied = tmp_path / "checkpoints" / "tune0" / "seed-0.step-4.pt"
    assert conductor.part("child")["0"]["checkpoint"] == str(copied) and copied.is_file()
    for tune_id in ("other", "child"):
        conductor.report(tune_id, 8, 0.5)
    conductor.ended("other", False)
    conductor.ended("child", True)
    assert not copied.is_file()
    conductor.journal.close()


def two_generations(folder: Path) -> None:
    """A population of three that has ended one generation and trained half of the next; one member has failed."""
    conductor = Driven(plan_of(folder, folder, WEIGHTS))
    for number, score in enumerate([0.9, 0.5, 0.1]):
        conductor.start(f"tune{number}")
        checkpoint = folder / "checkpoints" / f"tune{number}" / "seed-0.step-4.pt"
        checkpoint.parent.mkdir(parents=True)
        checkpoint.write_text(json.dumps({"level": score, "applied": [WEIGHTS[number]] * 4}))
        for step in (2, 4):
            conductor.report(f"tune{number}", step, score)
        conductor.ended(f"tune{number}", False)
    for number in range(3):
        conductor.start(f"again{number}")
        conductor.report(f"again{number}", 6, 0.7)
    conductor.ended("again1", True)
    conductor.journal.close()


def stored(folder: Path) -> list[tuple[Any, ...]]:
    """What Optuna has of the members that have ended or copied."""
    trials = optuna.load_study(study_name="p", storage=f"sqlite:///{folder / 'optuna.db'}").trials
    return [(t.number, t.state, t.params, t.values, t.intermediate_values, t.user_attrs) for t in trials]


@pytest.mark.parametrize("content", [None, b"garbage" * 4000])
def test_a_population_whose_database_is_lost_has_it_again(tmp_path: Path, content: bytes | None) -> None:
    two_generations(tmp_path)
    before, database = stored(tmp_path), tmp_path / "optuna.db"
    assert [list(trial[4]) for trial in before] == [[2, 4, 6], [2, 4, 6], [2, 4]]  # a copy's results are not its own
    database.unlink()
    if content is not None:
        database.write_bytes(content)
    if content:
        with pytest.raises(UserError, match=r"optuna\.db cannot be used, it is damaged .* move it away and resume"):
            plan_of(tmp_path, tmp_path, WEIGHTS)
        database.unlink()
    again = Driven(plan_of(tmp_path, tmp_path, WEIGHTS))
    again.catch_up()
    again.journal.close()
    assert stored(tmp_path) == before


def test_a_member_whose_training_state_is_lost_is_trained_again_by_its_schedule(tmp_path: Path) -> None:
    two_generations(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "tune0")
    again = Driven(plan_of(tmp_path, tmp_path, WEIGHTS))
    again.catch_up()
    for tune_id in ("first", "third"):  # the second has failed, the third has copied the first
        values = again.start(tune_id)
        part = again.part(tune_id)
        assert (part["0"]["checkpoint"], part["until"]) == (None, 8)
        assert [milestone["step"] for milestone in part["0"]["milestones"]] == [4]
        assert again.plan.recipe(values).loss.at(0).feature_distillation == WEIGHTS[0]
        run = functools.partial(SeedRun, run=follow, folder=tmp_path / tune_id, checkpoint=None)
        recipe = again.plan.recipe(values).updated({"training.checkpoint_every": part["save_every"]})
        known = [Milestone(**milestone) for milestone in part["0"]["milestones"]]
        resumed = {each.step: each.metrics[parts.METRIC] for each in run(recipe, 0, known=known)}
        whole = {each.step: each.metrics[parts.METRIC] for each in run(recipe, 0, known=[])}
        assert list(resumed) == [4, 6, 8, 10, 12]
        assert {step: resumed[step] for step in (6, 8, 10, 12)} == {step: whole[step] for step in (6, 8, 10, 12)}
    again.journal.close()
