"""What becomes of a population's members, told to the conductor as Tune would: no Ray, no training."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from siclip_platform.recipes.recipe import load_recipe
from siclip_platform.search.population_conductor import PopulationConductor
from siclip_platform.search.study import StudyPlan
from siclip_platform.studies.confirmation import confirm_search
from tests.support import study_parts as parts
from tests.support.population_parts import PATH, STEPS, plan_of


class Silent:
    """A recorder that writes nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


class Recorded:
    """Stands for an experiment; keeps what it says."""

    def __init__(self) -> None:
        self.display = self
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


class Driven(PopulationConductor):
    """A conductor that a test tells what Tune would."""

    def __init__(self, plan: StudyPlan) -> None:
        recorder: Any = Silent()
        super().__init__(plan, recorder)

    def begin(self, tune_id: str) -> dict[str, Any]:
        values = self.suggest(tune_id)
        self.started(SimpleNamespace(trial_id=tune_id, error_file=None))
        return dict(values)

    def report(self, tune_id: str, step: int, value: float) -> None:
        figures = {parts.METRIC: value, "cost/seconds": 1.0}
        seeds = {"0": {"metrics": figures, "history": []}}
        self.reported(tune_id, {"step": step, "seeds": seeds, **figures})

    def stretch(self, tune_id: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.plan.folder / "replay" / f"{tune_id}.json").read_text())
        return found


def test_nobody_goes_on_before_the_turn_although_tune_tells_late_that_a_stretch_ended(tmp_path: Path) -> None:
    conductor = Driven(plan_of(tmp_path, tmp_path, [100.0, 900.0]))
    assert [conductor.begin("a"), conductor.begin("b")] == [{PATH: 100.0}, {PATH: 900.0}]
    conductor.report("a", 4, 0.9)
    conductor.ended("a", False)
    assert conductor.suggest("early") is None  # the other one is on its way
    conductor.report("b", 4, 0.1)  # and now is there, but Tune has not said so
    assert conductor.begin("c") == {PATH: 100.0}
    assert conductor.journal.turns == [4]
    assert conductor.suggest("early") is None
    conductor.ended("b", False)
    taken = conductor.begin("d")
    assert (taken[PATH], taken["loss.schedule"][0]["step"]) == (100.0, 4)
    assert conductor.stretch("d")["until"] == 8
    for tune_id, value in (("c", 0.9), ("d", 0.8)):
        conductor.report(tune_id, 8, value)
    assert conductor.remaining == 2  # one stretch each
    conductor.journal.close()


@pytest.mark.parametrize(
    "scores", [[0.1, math.nan, 0.5], [math.nan, 0.5, 0.1], [0.5, math.nan, math.nan], [math.nan] * 3]
)
def test_a_member_whose_figure_is_no_number_is_no_parent_before_tune_says_that_it_failed(
    tmp_path: Path, scores: list[float]
) -> None:
    conductor = Driven(plan_of(tmp_path, tmp_path, [100.0, 300.0, 900.0]))
    for number in range(3):
        conductor.begin(f"tune{number}")
    for number, value in enumerate(scores):
        conductor.report(f"tune{number}", 4, value)
    conductor.suggest("early")
    assert conductor.journal.turns == [4]
    taken = {entry.name: entry.takeovers for entry in conductor.journal.in_flight() if entry.takeovers}
    able = sorted((value, f"trial-{number:03d}") for number, value in enumerate(scores) if math.isfinite(value))
    assert taken == ({able[0][1]: [(4, able[-1][1])]} if len(able) > 1 else {})
    for number, value in enumerate(scores):
        conductor.ended(f"tune{number}", not math.isfinite(value))
    assert [entry.name for entry in conductor.journal.in_flight()] == sorted(name for _, name in able)
    conductor.journal.close()


def test_a_member_is_the_recipe_that_the_study_began_with_and_saves_at_every_turn(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, tmp_path, [100.0, 300.0])
    conductor = Driven(plan)
    conductor.begin("a")
    assert (conductor.stretch("a")["save_every"], plan.base.training.checkpoint_every) == (4, 0)
    conductor.report("a", STEPS, 0.5)
    conductor.ended("a", False)
    result = conductor.result()
    assert result.best.recipe == plan.base
    recorded: Any = Recorded()
    confirm_search(recorded, result, plan.base, 2)
    assert "the recipe itself" in recorded.said[0]
    assert load_recipe(tmp_path / "schedules" / "trial-000.yaml") == plan.base
    conductor.journal.close()


def test_the_state_that_a_member_takes_over_stays_though_its_parent_fails_first(tmp_path: Path) -> None:
    conductor = Driven(plan_of(tmp_path, tmp_path, [100.0, 300.0, 900.0]))
    for number, score in enumerate([0.9, 0.5, 0.1]):
        conductor.begin(f"tune{number}")
        checkpoint = tmp_path / "checkpoints" / f"tune{number}" / "seed-0.step-4.pt"
        checkpoint.parent.mkdir(parents=True)
        checkpoint.touch()
        conductor.report(f"tune{number}", 4, score)
        conductor.ended(f"tune{number}", False)
    assert conductor.journal.entries["trial-002"].takeovers == [(4, "trial-000")]
    for tune_id in ("parent", "other", "child"):
        conductor.begin(tune_id)
        if tune_id == "parent":
            conductor.ended(tune_id, True)
    taken = tmp_path / "checkpoints" / "tune0" / "seed-0.step-4.pt"
    assert conductor.stretch("child")["0"]["checkpoint"] == str(taken) and taken.is_file()
    for tune_id in ("other", "child"):
        conductor.report(tune_id, 8, 0.5)
    conductor.ended("other", False)
    conductor.ended("child", True)
    assert not taken.is_file()
    conductor.journal.close()
