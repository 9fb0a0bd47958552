"""A dataset without a test split: said at the start; finished models are measured on validation."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest

from siclip_platform.datasets.manifest import Manifest, open_dataset, write_manifest
from siclip_platform.display import Display
from siclip_platform.recipes.digits import digits_student
from siclip_platform.studies.experiment import Experiment
from siclip_platform.studies.final_runs import FinalRuns, final_split
from siclip_platform.studies.options import Options
from siclip_platform.tracking import Tracker, default_tracking_uri
from siclip_platform.training.ray_train import TrainedModel


@pytest.fixture
def without_test(digits: Path, tmp_path: Path) -> Path:
    """The digit scenes without their test split."""
    folder = tmp_path / "data"
    shutil.copytree(digits, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["splits"]["test"]
    write_manifest(folder, Manifest.model_validate(manifest))
    return folder


def test_the_split_is_chosen_and_said_before_anything_is_trained(
    digits: Path, without_test: Path, tmp_path: Path, mlflow_database: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    assert final_split(open_dataset(digits)) == "test"
    (tmp_path / "mlflow.db").write_bytes(mlflow_database)
    tracker = Tracker(default_tracking_uri(tmp_path), artifacts=tmp_path / "artifacts", spool=tmp_path / "s")
    experiment = Experiment(Options(out=tmp_path, data=without_test), Display(), tracker, "s")
    dataset = experiment.dataset()
    said = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert experiment.final_split == "validation"
    assert f"{without_test} has no test split: finished models are measured on its validation split" in said

    options = experiment.options
    runs = FinalRuns(
        options=options, display=Display(), tracker=tracker, folder=tmp_path / "s", key="k", tags={}, dataset=dataset
    )
    recipe = digits_student(without_test)
    last = {"validation/mean_recall@1": 0.25, "cost/steps": 12.0}
    assert runs._measure(TrainedModel(Path("no such file"), last), recipe) == {}, "the training's figures stand"
    tracker.close(0)


@pytest.mark.parametrize("empty", [True, False])
def test_a_test_split_without_samples_counts_as_none(without_test: Path, empty: bool) -> None:
    manifest = json.loads((without_test / "manifest.json").read_text())
    rows = [] if empty else manifest["splits"]["validation"]
    write_manifest(without_test, Manifest.model_validate(manifest | {"splits": manifest["splits"] | {"test": rows}}))
    assert final_split(open_dataset(without_test)) == ("validation" if empty else "test")


@pytest.mark.long
def test_a_training_ends_with_exit_code_0_and_validation_figures(without_test: Path, tmp_path: Path) -> None:
    small = ["training.steps=4", "training.warmup_steps=1", "training.batch_size=8", "training.evaluate_every=2"]
    settings = [part for change in small for part in ("--set", change)]
    train = ["--recipe", "digits-teacher", "--data", str(without_test), *settings]
    figures = []
    for arguments in (train, ["--resume", "train"]):
        command = [sys.executable, "-m", "siclip_platform", "train", *arguments, "--out", str(tmp_path / "out")]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=400, check=False)
        assert done.returncode == 0, done.stderr
        said, _, ended = done.stdout.partition("validation/")
        assert "has no test split" in re.sub(r"\s+", " ", said)
        assert "test/" not in done.stdout
        figures.append(ended.splitlines()[:8])
    assert figures[0] == figures[1]

    client = mlflow.MlflowClient(tracking_uri=default_tracking_uri(tmp_path / "out"))
    [run] = client.search_runs([client.get_experiment_by_name("siclip").experiment_id])
    assert run.info.status == "FINISHED" and run.data.tags["siclip.state"] == "completed"
    shown = re.search(r"^validation/mean_recall@1: ([\d.]+)$", done.stdout, re.MULTILINE)
    assert shown and float(shown[1]) == pytest.approx(run.data.metrics["validation/mean_recall_at_1"], abs=5e-5)
