"""The first screen of a report: what may be called the best, what it costs, and what to try next."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.power import TTestPower

from siclip_platform.report.draw.blocks import Tile, Tiles
from siclip_platform.report.judge.winner import find_winner
from siclip_platform.report.read.runs import MEAN_RECALL, Run, Study
from siclip_platform.report.sections.advice import OTHERWISE, next_steps
from siclip_platform.report.sections.statement import claim_sentence
from siclip_platform.report.sections.summary import summary

# "one" beats "base" clearly and "two" on average, but not at every seed.
SEEDS = (0, 1, 2, 3)
FRESH = (10, 11, 12, 13, 14)
GAPS = {"base": [0.0] * 4, "one": [0.1, 0.11, 0.1, 0.09], "two": [0.098, 0.104, 0.103, 0.081]}
COSTS = {"base": (12.0, 1_000_000), "one": (15.0, 1_500_000), "two": (12.0, 1_000_000)}


def run(kind: str, name: str, seed: int, value: float, curve: tuple[float, ...] = ()) -> Run:
    seconds, parameters = COSTS[name]
    towers = {"cost/parameters_image": parameters, "cost/parameters_text": parameters}
    return Run(
        run_id=f"{kind} {name} {seed}",
        name=name,
        kind=kind,
        state="completed",
        tags={"siclip.setting": name, "siclip.seed": str(seed)},
        metrics={MEAN_RECALL: value, "cost/seconds": seconds, **towers},
        curves={MEAN_RECALL: tuple((20 * (index + 1), value + gap) for index, gap in enumerate(curve))},
    )


def study(curve: tuple[float, ...] = (), *names: str) -> Study:
    """An ablation in which "one" is confirmed but not distinguishable from "two"."""
    trials = tuple(
        run("trial", name, seed, 0.3 + 0.01 * seed + GAPS[name][index], curve)
        for name in names or tuple(GAPS)
        for index, seed in enumerate(SEEDS)
    )
    fresh = tuple(
        run("confirm", name, seed, 0.3 + (0.1 + 0.001 * (seed % 3) if name == "one" else 0.0))
        for name in ("base", "one")
        for seed in FRESH
    )
    frame = Run(run_id="study", name="s", kind="study", state="completed", tags={"siclip.baseline": "base"})
    return Study(run=frame, experiment="", type="ablation", trials=trials, confirms=fresh)


def tile(study: Study, label: str) -> Tile:
    (tiles,) = (block for block in summary(study).blocks if isinstance(block, Tiles))
    (found,) = (tile for tile in tiles.tiles if tile.label == label)
    return found


def test_a_shared_lead_is_not_called_the_best() -> None:
    winner = find_winner(study())
    assert (winner.name, winner.status) == ("one", "confirmed")
    claim = claim_sentence(winner, study())
    assert claim.startswith("Leading, unconfirmed: one. 5 fresh seeds") and " is the best" not in claim
    assert "the study's seeds do not distinguish it from two" in claim
    alone = study((), "base", "one")
    assert "one is the best: 5 fresh seeds" in claim_sentence(find_winner(alone), alone)
    leader = tile(study(), "Leading, unconfirmed")
    assert leader.value == "one" and "not distinguishable from two" in leader.detail
    assert tile(alone, "Best setting").value == "one"


def test_the_leaders_cost_is_compared_with_the_baselines() -> None:
    cost = tile(study(), "Cost per run")
    assert cost.value == "15.0 s"
    assert cost.detail == "1.25 × base (12.0 s) · 3 M parameters, 50.0 % more than base · study: 291.0 s, 22 runs"


def test_the_next_step_is_the_number_of_seeds_needed() -> None:
    gaps = np.subtract(GAPS["one"], GAPS["two"])
    effect = gaps.mean() / gaps.std(ddof=1)
    assert stats.ttest_1samp(gaps, 0).pvalue > 0.05
    more = math.ceil(TTestPower().solve_power(effect_size=effect, alpha=0.05, power=0.8)) - len(SEEDS)
    assert str(next_steps(study())[0]).startswith(f"Separate one from two: about {more} more seeds of each")
    assert next_steps(study((), "base", "one")) == [OTHERWISE]


@pytest.mark.parametrize(
    ("curve", "mode", "rises"),
    [
        ((-0.2, -0.1, -0.05, -0.02, 0.0), "max", True),
        ((0.0,) * 5, "max", False),
        ((0.2, 0.1, 0.05, 0.03, 0.0), "max", False),
    ],
)
def test_a_curve_that_still_rises_suggests_more_steps(curve: tuple[float, ...], mode: str, rises: bool) -> None:
    found = next_steps(replace(study(curve, "base", "one"), mode=mode))
    assert any(step.what == "Train longer" and "improved by 2.0 points" in step.why for step in found) is rises
