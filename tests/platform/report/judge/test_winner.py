"""Verdicts and winners of synthetic studies: noise has none, and a true gain is found and confirmed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from siclip_platform.report.judge.settings import compare_settings, indistinguishable_from
from siclip_platform.report.judge.winner import find_winner
from siclip_platform.report.read.runs import MEAN_RECALL, Run, Study


def noise_study(generator: np.random.Generator, count: int, seeds: int, fresh: int = 0) -> Study:
    """An ablation whose settings do not differ: their values share a mean at each seed and have independent noise.

    Args:
        generator: Source of the values.
        count: Number of settings.
        seeds: Number of seeds of each.
        fresh: Number of fresh seeds with which the luckiest setting and the baseline are repeated.
    """
    # Twice the noise of a setting: pairing must remove it.
    shared = dict(enumerate(generator.normal(0.4, 0.02, seeds + fresh)))

    def run(kind: str, name: str, seed: int) -> Run:
        value = shared[seed] + generator.normal(0, 0.01)
        tags = {"siclip.setting": name, "siclip.seed": str(seed)}
        metrics = {MEAN_RECALL: value}
        return Run(run_id=f"{kind}{name}{seed}", name=name, kind=kind, state="completed", tags=tags, metrics=metrics)

    trials = tuple(run("trial", f"s{index}", seed) for index in range(count) for seed in range(seeds))
    frame = Run(run_id="study", name="noise", kind="study", state="completed", tags={"siclip.baseline": "s0"})
    study = Study(run=frame, experiment="", type="ablation", trials=trials)
    if not fresh:
        return study
    means = {row.setting.name: row.estimate.mean for row in compare_settings(study) if row.setting.name != "s0"}
    lucky = max(means, key=means.__getitem__)
    again = tuple(run("confirm", name, seed) for name in ("s0", lucky) for seed in range(seeds, seeds + fresh))
    return Study(run=frame, experiment="", type="ablation", trials=trials, confirms=again)


@pytest.mark.parametrize("seeds", [3, 5])
def test_noise_has_no_winner(seeds: int) -> None:
    """Of 200 studies of 20 equal settings at most 5 % call one better than the baseline."""
    generator = np.random.default_rng(2026)
    rows = [compare_settings(noise_study(generator, 20, seeds)) for _ in range(200)]
    assert sum(any(row.verdict == "better" for row in found) for found in rows) <= 10
    uncorrected = [any(row.difference and row.difference.p < 0.05 for row in found) for found in rows]
    # Without the correction far more would.
    assert sum(uncorrected) > 40


def test_fresh_seeds_do_not_confirm_noise() -> None:
    generator = np.random.default_rng(7)
    found = [find_winner(noise_study(generator, 20, 3, fresh=5)) for _ in range(200)]
    assert sum(winner.status == "confirmed" for winner in found) <= 10
    assert all(winner.status in ("confirmed", "not confirmed", "contradicted") for winner in found)


def test_a_true_gain_is_found_and_confirmed() -> None:
    generator = np.random.default_rng(3)
    study = noise_study(generator, 4, 5, fresh=5)
    # The luckiest setting gets a true gain of ten standard deviations, before and after its selection.
    lucky = study.confirms[-1].label

    def lifted(runs: tuple[Run, ...]) -> tuple[Run, ...]:
        return tuple(
            replace(run, metrics={MEAN_RECALL: run.metrics[MEAN_RECALL] + 0.1 * (run.label == lucky)}) for run in runs
        )

    study = replace(study, trials=lifted(study.trials), confirms=lifted(study.confirms))
    rows = {row.setting.name: row for row in compare_settings(study)}
    assert rows[lucky].verdict == "better"
    assert find_winner(study).status == "confirmed"
    assert indistinguishable_from(study, lucky) == []
    assert indistinguishable_from(noise_study(generator, 3, 5), "s1") == ["s2"]
    undecided = [row for row in rows.values() if row.verdict == "not distinguishable"]
    assert undecided and all("not distinguishable with 5 seeds; " in row.verdict_text for row in undecided)


def test_fresh_seeds_of_an_earlier_leader_do_not_count() -> None:
    """A search was resumed after its leader had been confirmed, and now another trial leads."""

    def run(kind: str, trial: str, value: float, seed: int, **tags: str) -> Run:
        named = {f"siclip.{key}": text for key, text in {"seed": str(seed), "best_trial": trial, **tags}.items()}
        named |= {"siclip.trial": trial} if kind == "trial" else {}
        run_id, metrics = f"{kind}{trial}{seed}{tags}", {MEAN_RECALL: value}
        return Run(run_id=run_id, name=trial, kind=kind, state="completed", tags=named, metrics=metrics)

    frame = Run(run_id="study", name="grown", kind="study", state="completed")
    fresh = [run("confirm", "a", 0.5 + seed / 1000, seed) for seed in (1, 2, 3)]
    rivals = [run("confirm", "a", 0.3 + seed / 900, seed, setting="baseline") for seed in (1, 2, 3)]
    trials = (run("trial", "a", 0.5, 0), run("trial", "b", 0.4, 0))
    study = Study(run=frame, experiment="", trials=trials, confirms=(*fresh, *rivals))
    assert (find_winner(study).status, find_winner(study).name) == ("confirmed", "a")
    grown = replace(study, trials=(*trials, run("trial", "c", 0.6, 0)))
    assert (find_winner(grown).status, find_winner(grown).name) == ("not repeated", "c")
    again = [run("confirm", "c", 0.3 + seed / 800, seed) for seed in (1, 2, 3)]
    again += [run("confirm", "c", 0.4 + seed / 900, seed, setting="baseline") for seed in (1, 2, 3)]
    assert find_winner(replace(grown, confirms=(*study.confirms, *again))).status == "contradicted"


def test_seeds_of_the_selection_do_not_confirm() -> None:
    """A confirmation with a seed that the study already used repeats the same run."""
    study = noise_study(np.random.default_rng(5), 3, 3, fresh=3)
    reused = tuple(replace(run, tags={**run.tags, "siclip.seed": "0"}) for run in study.confirms)
    assert not find_winner(replace(study, confirms=reused)).fresh
