"""The studies in benchmarks/: stored runs, settings, tables, verdicts."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
from scipy import stats

from siclip.errors import UserError
from siclip_platform.datasets.manifest import open_dataset

ROOT = Path(__file__).resolve().parents[2]

import pair_matching  # noqa: E402
import study_report  # noqa: E402
import study_tools  # noqa: E402
import wikd_ablation  # noqa: E402
from benchmark_parts import made_up  # noqa: E402

FIGURES = {"test/mean_recall@1": 0.5, "test/beats_all_negatives": 0.25, "cost/training_seconds": 9.0}

# --- stored runs ---


@pytest.fixture
def options(digits: Path, tmp_path: Path) -> argparse.Namespace:
    arguments = ["--digits", str(digits), "--out", str(tmp_path / "out"), "--steps", "4", "--seeds", "2"]
    return wikd_ablation.parse(arguments)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Records the recipes instead of training them."""
    recipes: list[str] = []

    def instead(recipe: str, checkpoint: Path | None) -> dict[str, float]:
        recipes.append(recipe)
        if json.loads(recipe)["training"]["seed"] == 666:
            raise ArithmeticError("no number")
        if checkpoint:
            checkpoint.write_text("a teacher")
        return FIGURES

    monkeypatch.setattr(study_tools, "train_and_measure", instead)
    yield recipes


def ablation_runs(options: argparse.Namespace, seeds: list[int]) -> list[study_tools.Run]:
    data = study_tools.open_datasets(options)["digits"]
    teacher = study_tools.teacher_runs({"digits": data}, options)["digits"]
    return [
        wikd_ablation.ablation_run("digits", data, teacher, setting, seed, options)
        for seed in seeds
        for setting in options.settings
    ]


def complete(options: argparse.Namespace, runs: list[study_tools.Run]) -> study_tools.RunStore:
    with study_tools.open_store(options.out) as store, ThreadPoolExecutor(1) as pool:
        study_tools.complete(runs, store, pool)
    return store


def test_finished_runs_are_never_trained_again(options: argparse.Namespace, trained: list[str]) -> None:
    complete(options, ablation_runs(options, [1]))
    assert len(trained) == len(set(trained)) == 6
    store = complete(options, ablation_runs(options, [1, 2]))
    assert len(trained) == len(set(trained)) == 12
    assert [json.loads(recipe)["training"]["seed"] for recipe in trained] == [1] * 6 + [2] * 6
    runs = ablation_runs(options, [1, 2])
    assert store.figures(runs[:1], "test/mean_recall@1") == {1: 0.5}
    kept = [json.loads(line) for line in store.path.read_text().splitlines()]
    assert {row["key"] for row in kept} == {run.key for run in runs} and kept[0]["metrics"] == FIGURES


def test_a_failed_run_does_not_stop_others_and_is_retried_next_time(
    options: argparse.Namespace, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = ablation_runs(options, [666, 1])
    with pytest.raises(RuntimeError, match=r"6 of 12 runs failed(.|\n)*no number"):
        complete(options, runs)
    assert len(trained) == 12
    monkeypatch.setattr(study_tools, "train_and_measure", lambda recipe, checkpoint: FIGURES)
    assert len(complete(options, runs).rows) == 12


def test_an_incomplete_line_costs_only_that_run(
    options: argparse.Namespace, trained: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    runs = ablation_runs(options, [1])
    store = complete(options, runs)
    text = store.path.read_bytes()
    store.path.write_bytes(text[:-20])
    complete(options, runs)
    assert "incomplete" in capsys.readouterr().err
    assert len(trained) == 7 and trained[-1] == trained[5]
    assert store.path.read_bytes() == text
    store.path.write_bytes(b"{}\n" + text)
    with pytest.raises(UserError, match="line 1 is not a run"):
        complete(options, runs)


def test_a_teacher_is_kept_and_trained_again_only_without_its_checkpoint(
    options: argparse.Namespace, trained: list[str]
) -> None:
    teacher = study_tools.teacher_runs(study_tools.open_datasets(options), options)["digits"]
    for _ in range(2):
        complete(options, [teacher])
    assert len(trained) == 1 and teacher.checkpoint and teacher.checkpoint.exists()
    teacher.checkpoint.unlink()
    complete(options, [teacher])
    assert len(trained) == 2


def test_a_runs_key_does_not_depend_on_its_folders(options: argparse.Namespace, digits: Path, tmp_path: Path) -> None:
    here = ablation_runs(options, [1])
    shutil.copytree(digits, tmp_path / "moved")
    options.digits, options.out = tmp_path / "moved", tmp_path / "elsewhere"
    moved = ablation_runs(options, [1])
    assert [run.key for run in moved] == [run.key for run in here]
    assert moved[1].recipe.hash != here[1].recipe.hash
    options.digits_teacher_steps += 1
    other = ablation_runs(options, [1])
    # The baseline has no teacher.
    assert other[0].key == here[0].key
    assert all(one.key != two.key for one, two in zip(other[1:], here[1:], strict=True))


def test_a_folder_is_locked_for_one_study_at_a_time(tmp_path: Path) -> None:
    with (
        study_tools.open_store(tmp_path),
        pytest.raises(UserError, match="another study"),
        study_tools.open_store(tmp_path),
    ):
        pass


# --- the ablation ---


def test_each_setting_adds_one_part_and_changes_nothing_else(options: argparse.Namespace) -> None:
    recipes = [run.recipe for run in ablation_runs(options, [1])]
    assert recipes[-1].loss.distils and not recipes[0].loss.distils and recipes[0].teacher is None
    changed = [
        {name for name, value in after.flat().items() if before.flat()[name] != value}
        for before, after in pairwise(recipes)
    ]
    assert changed == [
        {"model.inherit", "teacher"},
        {"loss.feature_distillation"},
        {"loss.contrastive_relational"},
        {"loss.interactive_contrastive"},
        {"loss.pair_matching"},
    ]


def numbers(cell: str) -> list[float]:
    return [float(text) for text in re.findall(r"[+-]?\d+\.\d+", cell.replace("−", "-"))]


def test_the_table_gives_means_intervals_and_paired_differences(options: argparse.Namespace, tmp_path: Path) -> None:
    options.settings = ["icl", "pm"]
    runs = ablation_runs(options, [1, 2, 3])
    icl, pm = [0.40, 0.44, 0.36], [0.43, 0.46, 0.41]
    labels = [wikd_ablation.LABELS[setting] for setting in options.settings]
    figures = {
        (label, seed): value
        for label, values in zip(labels, (icl, pm), strict=True)
        for seed, value in enumerate(values, 1)
    }
    table = wikd_ablation.ablation_table(made_up(runs, figures, tmp_path / "store"), runs)
    first, second = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:])
    assert first[:2] == [labels[0], "3"] and first[-1] == second[-1] == "20"
    # The first row has no row above it.
    assert first[3] == first[5] == ""
    interval = stats.ttest_1samp(icl, 0).confidence_interval(0.95)
    assert numbers(first[4]) == pytest.approx([40.0, 100 * (interval.high - interval.low) / 2], abs=0.05)
    interval = stats.ttest_rel(pm, icl).confidence_interval(0.95)
    expected = [100 * (interval.high + interval.low) / 2, 100 * (interval.high - interval.low) / 2]
    assert numbers(second[5]) == pytest.approx(expected, abs=0.05)
    assert numbers(second[3]) == pytest.approx([value / 2 for value in expected], abs=0.05)


# --- the commands ---


@pytest.mark.long
def test_the_commands_train_write_their_pages_and_resume(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first command runs in a separate process."""
    monkeypatch.chdir(tmp_path)
    shared = ["--digits", str(digits), "--out", str(tmp_path), "--batch-size", "16", "--jobs", "1"]
    shared += ["--steps", "2", "--digits-teacher-steps", "2"]
    ablation = ["wikd_ablation.py", *shared, "--seeds", "1", "--settings", "baseline", "pm"]
    one = ["--heads", "product", "--weights", "1", "--miners", "hardest", "--similarities", "1"]
    pairs = ["pair_matching.py", *shared, *one, "--screening-seeds", "1", "--finalists", "1", "--final-seeds", "2"]
    command = [sys.executable, str(ROOT / "benchmarks" / ablation[0]), *ablation[1:]]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    runs_file = tmp_path / study_tools.RUNS
    counts = [len(runs_file.read_text().splitlines())]
    for study, (_, *arguments) in ((pair_matching, pairs), (wikd_ablation, ablation)):
        assert study.main(arguments) == 0
        counts.append(len(runs_file.read_text().splitlines()))
    # The teacher and 2 settings; then 2 settings with 3 seeds; then nothing is trained again.
    assert counts == [3, 9, 9]
    page, content = (tmp_path / f"wikd-ablation.{suffix}" for suffix in ("md", "json"))
    assert "python benchmarks/wikd_ablation.py --digits" in page.read_text() and "+ PM" in page.read_text()
    runs = json.loads(content.read_text())["runs"]
    assert [run["setting"] for run in runs] == [
        "teacher",
        *(wikd_ablation.LABELS[name] for name in ("baseline", "pm")),
    ]
    assert all(0 <= run["metrics"][f"test/{study_report.HARD}"] <= 1 for run in runs)
    assert "No verdict: the comparison has 2 seeds" in (tmp_path / "pair-matching.md").read_text()
    assert open_dataset(digits).hash in page.read_text()
