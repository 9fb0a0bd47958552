"""Schedulers on our step: when they judge a trial, which trials they stop, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from siclip.errors import UserError
from siclip_platform.metrics import METRICS
from siclip_platform.search.policy.schedulers import make_scheduler, rungs
from siclip_platform.simulation.simulator import SimulatedTrial
from siclip_platform.spaces.definition import SearchSpace
from siclip_platform.spaces.parsing import parse_space
from siclip_platform.spaces.policy import SchedulerConfig

METRIC = "validation/mean_recall@1"
SPACE = """\
name: t
metric: validation/mean_recall@1
parameters:
  training.weight_decay: {distribution: uniform, low: 0, high: 1}
"""


@pytest.fixture
def space() -> SearchSpace:
    return parse_space(SPACE, "t.yaml", METRICS, None)


def config(name: str, **options: Any) -> SchedulerConfig:
    return SchedulerConfig.model_validate({"name": name, **options})


class NoController:
    def get_live_trials(self) -> list[SimulatedTrial]:
        return []


def run(scheduler: TrialScheduler, curves: list[dict[int, float]]) -> list[int]:
    """The step at which each trial ends; the trials run one after the other."""
    ends = []
    for number, curve in enumerate(curves):
        trial: Any = SimulatedTrial(str(number), {}, [])
        controller: Any = NoController()
        scheduler.on_trial_add(controller, trial)
        for step, score in curve.items():
            decision = scheduler.on_trial_result(controller, trial, {"step": step, METRIC: score})
            if decision == TrialScheduler.STOP:
                break
        scheduler.on_trial_complete(controller, trial, {"step": step, METRIC: score})
        ends.append(step)
    return ends


def flat(*scores: float) -> list[dict[int, float]]:
    return [dict.fromkeys(range(4, 49, 4), score) for score in scores]


@pytest.mark.parametrize(
    ("options", "steps", "expected"),
    [
        ({"name": "asha"}, 48, [16, 48]),
        ({"name": "asha", "min_steps": 4, "reduction_factor": 2}, 48, [4, 8, 16, 32, 48]),
        ({"name": "asha", "min_steps": 1, "reduction_factor": 10}, 1000, [1, 10, 100, 1000]),
        ({"name": "hyperband"}, 81, [9, 27, 81]),
        ({"name": "median", "min_steps": 8}, 48, [8, 48]),
        ({"name": "none"}, 48, [48]),
    ],
)
def test_rungs(options: dict[str, Any], steps: int, expected: list[int]) -> None:
    assert rungs(SchedulerConfig.model_validate(options), steps) == expected


def test_a_trial_is_judged_at_the_rungs(space: SearchSpace) -> None:
    """Of trials that run one by one, ASHA stops those below the top half at the first rung they reach."""
    asha = make_scheduler(config("asha", min_steps=8, reduction_factor=2), space, steps=48)
    assert run(asha, flat(0.5, 0.1, 0.2, 0.9)) == [48, 8, 8, 48]


def test_a_trial_can_be_stopped_at_a_later_rung(space: SearchSpace) -> None:
    asha = make_scheduler(config("asha", min_steps=8, reduction_factor=2), space, steps=48)
    late = dict.fromkeys(range(4, 16, 4), 0.8) | dict.fromkeys(range(16, 49, 4), 0.2)
    assert run(asha, [*flat(0.5), late]) == [48, 16]


def test_hyperbands_brackets_start_at_different_rungs_and_follow_from_the_seed(space: SearchSpace) -> None:
    scores = flat(*(0.9 - 0.01 * number for number in range(60)))  # each worse than all before
    options = config("hyperband", min_steps=4, reduction_factor=3)
    ends = [run(make_scheduler(options, space, steps=48, seed=7), scores) for _ in range(2)]
    assert ends[0] == ends[1], "brackets follow from the seed"
    assert {4, 12, 36} <= set(ends[0]), "brackets start at different rungs"
    assert ends[0] != run(make_scheduler(options, space, steps=48, seed=8), scores)


def test_the_median_rule_stops_a_trial_below_the_median_of_the_others(space: SearchSpace) -> None:
    median = make_scheduler(config("median", min_steps=8, min_trials=3), space, steps=48)
    assert run(median, flat(0.5, 0.4, 0.6, 0.45, 0.55)) == [48, 48, 48, 8, 48]


def test_no_scheduler_stops_no_trial(space: SearchSpace) -> None:
    scheduler = make_scheduler(config("none"), space, steps=48)
    assert isinstance(scheduler, FIFOScheduler) and run(scheduler, flat(0.9, 0.1)) == [48, 48]


def test_schedulers_that_cannot_work_are_refused(space: SearchSpace) -> None:
    with pytest.raises(UserError, match="min_steps 48 leaves none of a trial's 48 steps"):
        make_scheduler(config("asha", min_steps=48), space, steps=48)
    several = parse_space(SPACE + "objectives: {cost/seconds: min}\n", "t.yaml", METRICS, None)
    with pytest.raises(UserError, match="several objectives and scheduler asha"):
        make_scheduler(config("asha"), several, steps=48)
    assert isinstance(make_scheduler(several.scheduler, several, steps=48), FIFOScheduler)
