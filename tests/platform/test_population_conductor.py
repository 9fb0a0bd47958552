"""What becomes of a population's members, told to the conductor as Tune would: no Ray, no training."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from siclip_platform.search.population import PopulationConductor
from siclip_platform.search.study import StudyPlan
from tests.platform import study_parts as parts
from tests.platform.population_parts import PATH, plan_of


class Silent:
    """A recorder that writes nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


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
