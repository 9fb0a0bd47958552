"""The whole story, small: dataset, teacher, study, best and control, report.

The demo is jobs/tune_wikd.py: submitted here to a head that requires a token and has secrets in its environment.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from ray_head import RAY, ROOT, ray_head
from secret_parts import assert_no_secret_in, new_secrets
from typer.testing import CliRunner

from siclip_platform.cli import app
from siclip_platform.tracking import default_tracking_uri

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def head() -> Iterator[dict[str, str]]:
    with ray_head(new_secrets()) as env:
        yield env


def words(out: Path, digits: Path) -> list[str]:
    return f"--out {out} --data {digits} --trials 3 --steps 12 --teacher-steps 12 --concurrent 2".split()


@pytest.fixture(scope="module")
def out(head: dict[str, str], digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The job's output folder, with ``stdout`` of the client and ``log``, the job's own stdout and stderr."""
    folder = tmp_path_factory.mktemp("demo")
    command = [*RAY, "job", "submit", "--", "python", "jobs/tune_wikd.py", *words(folder, digits)]
    done = subprocess.run(command, cwd=ROOT, env=head, capture_output=True, text=True, timeout=580, check=False)
    (folder / "stdout").write_text(done.stdout + done.stderr)
    assert done.returncode == 0, done.stdout + done.stderr
    (log,) = Path(head["HEAD_FOLDER"]).glob("session_latest/logs/job-driver-*.log")
    _, entrypoint, output = log.read_text().partition("Running entrypoint for job ")
    assert entrypoint
    (folder / "log").write_text(output)
    return folder


@pytest.fixture(scope="module")
def runs(out: Path) -> dict[str, list[mlflow.entities.Run]]:
    client = mlflow.MlflowClient(tracking_uri=default_tracking_uri(out))
    experiment = client.get_experiment_by_name("siclip")
    found: dict[str, list[mlflow.entities.Run]] = {}
    for run in client.search_runs([experiment.experiment_id]):
        found.setdefault(run.data.tags["siclip.kind"], []).append(run)
    return found


def test_mlflow_has_one_study_with_everything_nested_under_it(runs: dict, digits: Path) -> None:
    counts = {kind: len(found) for kind, found in runs.items()}
    assert counts == {"study": 1, "trial": 3, "teacher": 1, "best": 1, "control": 1}
    study = runs["study"][0]
    manifest = json.loads((digits / "manifest.json").read_text())
    assert study.data.tags["siclip.state"] == "completed"
    assert manifest["name"] == "digit-scenes"
    for kind in ("trial", "teacher", "best", "control"):
        for run in runs[kind]:
            assert run.data.tags["mlflow.parentRunId"] == study.info.run_id
            assert run.data.tags["siclip.dataset_hash"] == study.data.tags["siclip.dataset_hash"]
            assert run.info.status == ("KILLED" if run.data.tags["siclip.state"] == "pruned" else "FINISHED")


def test_trials_have_their_parameters_steps_and_final_metrics(runs: dict, out: Path) -> None:
    client = mlflow.MlflowClient(tracking_uri=default_tracking_uri(out))
    searched = json.loads(runs["study"][0].data.tags["siclip.searched"])
    settings = set()
    for run in runs["trial"]:
        assert set(searched) <= set(run.data.params)
        settings.add(tuple(run.data.params[path] for path in searched))
        assert {"validation/mean_recall_at_1", "cost/seconds", "cost/steps"} <= set(run.data.metrics)
        steps = {point.step for point in client.get_metric_history(run.info.run_id, "train/loss")}
        assert steps == set(range(1, int(run.data.metrics["cost/steps"]) + 1))
    assert len(settings) == 3


def test_best_retrains_the_best_trial_and_control_differs_only_in_distillation(runs: dict) -> None:
    best, control = runs["best"][0], runs["control"][0]
    trial = next(r for r in runs["trial"] if r.data.tags["siclip.trial"] == best.data.tags["siclip.best_trial"])
    completed = [r for r in runs["trial"] if r.data.tags["siclip.state"] == "completed"]
    score = "validation/mean_recall_at_1"
    assert trial.data.metrics[score] == max(r.data.metrics[score] for r in completed)
    assert best.data.params == trial.data.params
    assert best.data.metrics[score] == trial.data.metrics[score]  # Ray Train and in-process compute the same
    changed = {k for k, v in best.data.params.items() if control.data.params[k] != v}
    weights = ("feature_distillation", "contrastive_relational", "interactive_contrastive")
    assert changed == {f"loss.{weight}" for weight in weights}
    assert best.data.metrics["cost/steps"] == control.data.metrics["cost/steps"] == 12


def test_the_models_are_kept_and_measured(runs: dict, out: Path, digits: Path) -> None:
    client = mlflow.MlflowClient(tracking_uri=default_tracking_uri(out))
    for kind in ("teacher", "best", "control"):
        run = runs[kind][0]
        assert [item.path for item in client.list_artifacts(run.info.run_id)] == [f"{kind}.pt"]
        local = client.download_artifacts(run.info.run_id, f"{kind}.pt", str(out))
        result = CliRunner().invoke(app, ["evaluate", local, "--data", str(digits), "--json"])
        assert result.exit_code == 0, result.output
        for name, value in json.loads(result.stdout).items():
            assert run.data.metrics[name.replace("@", "_at_")] == pytest.approx(value, abs=1e-9)


def test_the_dataset_and_the_best_model_are_logged(runs: dict, out: Path, digits: Path) -> None:
    client = mlflow.MlflowClient(tracking_uri=default_tracking_uri(out))
    for kind in ("study", "trial", "best"):
        (used,) = runs[kind][0].inputs.dataset_inputs
        assert used.dataset.name == "digit-scenes"
        assert used.dataset.digest == runs["study"][0].data.tags["siclip.dataset_hash"]
    (model,) = client.search_logged_models([runs["best"][0].info.experiment_id])
    assert (model.name, str(model.status)) == ("best", "READY")
    assert model.source_run_id == runs["best"][0].info.run_id


@pytest.mark.long
def test_resumed_after_its_end_it_trains_nothing(runs: dict, out: Path, digits: Path) -> None:
    command = [sys.executable, "-m", "siclip_platform", "demo", "--resume", "wikd", "--out", str(out)]
    done = subprocess.run(command, cwd=out, capture_output=True, text=True, timeout=580, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    client = mlflow.MlflowClient(tracking_uri=default_tracking_uri(out))
    after = {run.info.run_id: run for run in client.search_runs([runs["study"][0].info.experiment_id])}
    assert len(after) == sum(map(len, runs.values()))
    for before in (run for kind in runs.values() for run in kind):
        run = after[before.info.run_id]
        assert run.info.status == before.info.status
        if before.data.tags["siclip.kind"] != "study":
            assert run.data.metrics == pytest.approx(before.data.metrics, rel=0, abs=0, nan_ok=True)
            assert (run.data.params, run.data.tags) == (before.data.params, before.data.tags)
            assert run.info.end_time == before.info.end_time


def test_the_screen_and_the_report_show_the_result(out: Path) -> None:
    screen = (out / "log").read_text()
    leads, control = "which leads 3 trials", "Against the control (the same recipe without distillation): "
    for part in (
        leads,
        control,
        "MLflow:",
        "Runs:    http://127.0.0.1:5000/#/experiments/",
        str(out / "report.html"),
    ):
        assert part in screen
    # The sentences are the report's, on the items that the study logged.
    twin = (out / "report.md").read_text()
    (line,) = (line for line in twin.splitlines() if line.startswith("Against the control"))
    assert "over 60 test images (covers test items, not seeds)" in line
    assert line[:80] in " ".join(screen.split())
    for chatter in ("INFO", "WARNING", "(raylet)", "(pid=", "Warning:"):
        assert chatter not in screen, screen
    html = (out / "report.html").read_text()
    assert "control" in html and (out / "report.md").exists()


def test_the_report_lists_every_cost_of_the_demo(runs: dict, out: Path, digits: Path) -> None:
    with (out / "report_files" / "data" / "totals.csv").open(encoding="utf-8-sig", newline="") as file:
        totals = {row[0]: row[1:] for row in csv.reader(file)}
    assert not any("not recorded" in cells for cells in totals.values()), totals
    splits = json.loads((digits / "manifest.json").read_text())["splits"].values()
    shards = sum((digits / shard["path"]).stat().st_size for split in splits for shard in split)
    checkpoints = sum((out / "wikd" / f"{kind}.pt").stat().st_size for kind in ("teacher", "best", "control"))
    (study,) = runs["study"]
    assert study.data.metrics["cost/dataset_bytes"] == shards
    kept = [run for kind in ("teacher", "best", "control") for run in runs[kind]]
    assert sum(run.data.metrics["cost/checkpoint_bytes"] for run in kept) == checkpoints
    for run in (*kept, *runs["trial"]):
        assert run.data.metrics["cost/device_seconds_cpu"] == run.data.metrics["cost/training_seconds"] > 0


def test_no_secret_of_the_environment_is_written(head: dict[str, str], out: Path) -> None:
    """``out`` has the client's output, the MLflow store and the report."""
    assert_no_secret_in(head, out, (out / "stdout").read_text(), {"tune_wikd"})
