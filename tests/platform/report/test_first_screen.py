"""The first screen of a report: what may be called best, what it costs, what to try next."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.power import TTestPower

from siclip_platform.report.draw.blocks import Tiles
from siclip_platform.report.judge.advice import OTHERWISE, next_steps
from siclip_platform.report.judge.winner import find_winner
from siclip_platform.report.read.runs import MEAN_RECALL, Run, Study
from siclip_platform.report.sections.summary import curse_sentence, summary

SEEDS = (0, 1, 2, 3)
FRESH = (10, 11, 12, 13, 14)
GAPS = {"base": [0.0] * 4, "one": [0.1, 0.11, 0.1, 0.09], "two": [0.098, 0.104, 0.103, 0.081]}
COSTS = {"base": (12.0, 1_000_000), "one": (15.0, 1_500_000), "two": (12.0, 1_000_000)}


def run(kind: str, name: str, seed: int, value: float, curve: tuple[float, ...] = ()) -> Run:
    seconds, parameters = COSTS[name]
    return Run(
        run_id=f"{kind} {name} {seed}", name=name, kind=kind, state="completed",
        tags={"siclip.setting": name, "siclip.seed": str(seed)},
        metrics={
            MEAN_RECALL: value, "cost/seconds": seconds, "cost/parameters_image": parameters,
            "cost/parameters_text": parameters,
        },
        curves={MEAN_RECALL: tuple((20 * (place + 1), value + gap) for place, gap in enumerate(curve))},
    )  # fmt: skip


def study(curve: tuple[float, ...] = (), *names: str) -> Study:
    """An ablation; "one" is confirmed, and the seeds do not tell it from "two"."""
    trials = tuple(
        run("trial", name, seed, 0.3 + 0.01 * seed + GAPS[name][place], curve)
        for name in names or tuple(GAPS)
        for place, seed in enumerate(SEEDS)
    )
    fresh = tuple(
        run("confirm", name, seed, 0.3 + (0.1 + 0.001 * (seed % 3) if name == "one" else 0.0))
        for name in ("base", "one")
        for seed in FRESH
    )
    frame = Run(run_id="study", name="s", kind="study", state="completed", tags={"siclip.baseline": "base"})
    return Study(run=frame, experiment="", type="ablation", trials=trials, confirms=fresh)


def test_what_is_level_with_another_is_not_called_best() -> None:
    winner = find_winner(study())
    assert (winner.name, winner.status) == ("one", "confirmed")
    words = curse_sentence(winner, study())
    assert "one is confirmed: 5 fresh seeds" in words and " is the best" not in words
    assert "the study's seeds do not tell it apart from two" in words
    alone = study((), "base", "one")
    assert "one is the best: 5 fresh seeds" in curse_sentence(find_winner(alone), alone)
    (tiles,) = (block for block in summary(study()).blocks if isinstance(block, Tiles))
    assert tiles.tiles[0].label == "Leading setting, shown to be better than the baseline"
    assert "not told apart from two" in tiles.tiles[0].detail


def test_the_leaders_cost_stands_beside_the_baselines() -> None:
    found = summary(study())
    (tiles,) = (block for block in found.blocks if isinstance(block, Tiles))
    price = tiles.tiles[2]
    assert (price.label, price.value) == ("Cost of one run of it", "15.0 s")
    assert price.detail.startswith("× 1.25 of base (12.0 s) · 3 M parameters, 50.0 % more than base · the study: ")
    text = " ".join(getattr(block, "text", "") for block in found.blocks)
    assert (
        "A run of one takes 15.0 s of wall time, one of base 12.0 s; 3 M parameters, 50.0 % more than base." in text
    )


def test_the_next_step_says_how_many_seeds_would_tell() -> None:
    gaps = np.subtract(GAPS["one"], GAPS["two"])
    effect = gaps.mean() / gaps.std(ddof=1)
    assert stats.ttest_1samp(gaps, 0).pvalue > 0.05
    more = math.ceil(TTestPower().solve_power(effect_size=effect, alpha=0.05, power=0.8)) - len(SEEDS)
    assert next_steps(study())[0].startswith(f"Tell one from two: about {more} more seeds of both would")
    assert next_steps(study((), "base", "one")) == [OTHERWISE]


@pytest.mark.parametrize(
    ("curve", "mode", "rises"),
    [
        ((-0.2, -0.1, -0.05, -0.02, 0.0), "max", True),
        ((0.0,) * 5, "max", False),
        ((0.2, 0.1, 0.05, 0.03, 0.0), "max", False),
    ],
)
def test_a_curve_that_still_rises_wants_more_steps(curve: tuple[float, ...], mode: str, rises: bool) -> None:
    found = next_steps(replace(study(curve, "base", "one"), mode=mode))
    assert any(step.startswith("Train longer: ") and "+2.0 points" in step for step in found) is rises
