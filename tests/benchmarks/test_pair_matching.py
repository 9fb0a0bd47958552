"""benchmarks/pair_matching.py: variants, screening and verdict."""

from __future__ import annotations

import argparse
from pathlib import Path
from types import SimpleNamespace

import pair_matching
import pytest
import study_report
import study_tools
import wikd_ablation
from benchmark_parts import made_up
from scipy import stats

GOOD, BAD = (
    pair_matching.Variant("product", 1.0, "hardest", 0.9, 0.5),
    pair_matching.Variant("mlp", 3.0, "sampled", 1.0, 0.0),
)


@pytest.fixture
def options(digits: Path, tmp_path: Path) -> argparse.Namespace:
    arguments = ["--digits", str(digits), "--out", str(tmp_path / "out"), "--steps", "4", "--seeds", "2"]
    return wikd_ablation.parse(arguments)


def pair_runs(options: argparse.Namespace, seeds: list[int]) -> list[study_tools.Run]:
    teachers = study_tools.teacher_runs(study_tools.open_datasets(options), options)
    return pair_matching.study_runs(teachers, {"digits": [BAD, GOOD]}, seeds, options)


def pair_figures(gain: float, seeds: list[int]) -> dict[tuple[str, int], float]:
    """Metrics of the base, of a variant that gains about ``gain`` with every seed, and of one that gains nothing."""
    noise = {seed: 0.002 * (-1) ** seed for seed in seeds}
    return {
        (setting, seed): 0.5 + 0.05 * (seed % 3) + more + (noise[seed] if setting != pair_matching.BASE else 0)
        for seed in seeds
        for setting, more in ((pair_matching.BASE, 0.0), (str(GOOD), gain), (str(BAD), 0.0))
    }


def test_variants_change_only_pair_matching(options: argparse.Namespace) -> None:
    base, bad, good = pair_runs(options, [7])
    assert base.recipe.loss.pair_matching == 0 and base.recipe.loss.distils
    fields = {"pair_matching": 3.0, "pair_head": "mlp", "negatives": "sampled", "false_negative_similarity": 1.0}
    assert bad.recipe == base.recipe.updated({f"loss.{name}": value for name, value in fields.items()})
    fields = {"pair_matching": 1.0, "negatives": "hardest", "pair_matching_warmup": 0.5}
    assert good.recipe == base.recipe.updated({f"loss.{name}": value for name, value in fields.items()})


def test_the_screening_ranks_by_the_gain_on_validation(options: argparse.Namespace, tmp_path: Path) -> None:
    runs = pair_runs(options, [0, 1])
    store = made_up(runs, pair_figures(0.1, [0, 1]), tmp_path / "store")
    assert pair_matching.screened(store, runs, "digits", [BAD, GOOD]) == [GOOD, BAD]
    # Metrics of the test split change nothing.
    for run in runs:
        store.rows[run.key]["metrics"]["test/beats_all_negatives"] = 0.0
    assert pair_matching.screened(store, runs, "digits", [BAD, GOOD]) == [GOOD, BAD]


def test_the_verdict_is_computed_from_the_metrics(options: argparse.Namespace, tmp_path: Path) -> None:
    seeds = [1000, 1001, 1002, 1003, 1004]
    runs = pair_runs(options, seeds)
    gained = pair_matching.comparisons(made_up(runs, pair_figures(0.02, seeds), tmp_path / "gain"), runs)
    bad, good = gained
    noise = [0.002 * (-1) ** seed for seed in seeds]
    raw = [stats.ttest_1samp([gain + value for value in noise], 0).pvalue for gain in (0.0, 0.02)]
    assert (bad.p, good.p) == pytest.approx((raw[0], 2 * raw[1]))
    assert pair_matching.verdict(gained).startswith("**Yes") and good.gains and not bad.gains
    lost = pair_matching.comparisons(made_up(runs, pair_figures(-0.02, seeds), tmp_path / "loss"), runs)
    assert pair_matching.verdict(lost).startswith(
        "**No"
    ) and "a loss larger than seed noise" in pair_matching.verdict(lost)
    few = [SimpleNamespace(hard=study_report.estimate([0.1, 0.11]))]
    assert pair_matching.verdict(few).startswith("No verdict: the comparison has 2 seeds")


def test_seeds_of_the_screening_are_not_used_again(digits: Path, tmp_path: Path) -> None:
    arguments = ["--digits", str(digits), "--out", str(tmp_path), "--screening-seeds"]
    assert pair_matching.parse([*arguments, "1000"]).screening_seeds == pair_matching.FINAL_SEED
    with pytest.raises(SystemExit):
        pair_matching.parse([*arguments, "1001"])
