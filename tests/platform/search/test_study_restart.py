"""A study whose driver is killed and restarted ends as one that was not killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mlflow
import optuna
import pytest

from siclip_platform.tracking import default_tracking_uri

pytestmark = [pytest.mark.slow, pytest.mark.chaos]
ROOT = Path(__file__).resolve().parents[3]
DRIVER = ROOT / "tests" / "support" / "study_driver.py"


def start(out: Path, digits: Path, trials: int) -> subprocess.Popen:
    environment = {**os.environ, "PRETEND_SECONDS": "0.12", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'platform'}"}
    log = (out / "driver.log").open("a")
    command = [sys.executable, str(DRIVER), str(out), str(digits), str(trials)]
    return subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=ROOT, start_new_session=True)


def events(out: Path) -> list[dict[str, Any]]:
    journal = out / "s" / "journal.jsonl"
    whole = journal.read_text().rpartition("\n")[0] if journal.is_file() else ""
    return [json.loads(line) for line in whole.splitlines()]


def killed_after(out: Path, digits: Path, trials: int, count: int, seconds: float) -> None:
    """Kill the driver ``seconds`` after its journal has ``count`` lines; its Ray ends with it."""
    driver = start(out, digits, trials)
    for _ in range(1200):
        if len(events(out)) >= count:
            break
        assert driver.poll() is None, (out / "driver.log").read_text()
        time.sleep(0.05)
    time.sleep(seconds)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()


def finished(out: Path, digits: Path, trials: int) -> None:
    driver = start(out, digits, trials)
    try:
        assert driver.wait(timeout=300) == 0, (out / "driver.log").read_text()
    finally:
        if driver.poll() is None:
            os.killpg(driver.pid, signal.SIGKILL)


def outcome(out: Path) -> dict[str, tuple[Any, ...]]:
    """Every trial's parameters, state and scores in Optuna; checked against MLflow."""
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{out}/s/optuna.db")
    trials = {
        trial.user_attrs["trial_id"]: (trial.params, trial.state.name, trial.intermediate_values)
        for trial in study.trials
        if trial.state.name != "WAITING"
    }
    client = mlflow.MlflowClient(tracking_uri=default_tracking_uri(out))
    experiment = client.get_experiment_by_name("siclip")
    runs = client.search_runs([experiment.experiment_id])
    assert all(run.info.status != "RUNNING" for run in runs)
    assert sorted(run.info.run_name for run in runs) == sorted(["s", *trials])
    states = {"COMPLETE": "completed", "PRUNED": "pruned", "FAIL": "failed"}
    for run in runs:
        if run.info.run_name == "s":
            continue
        params, state, scores = trials[run.info.run_name]
        assert run.data.tags["siclip.state"] == states[state]
        assert float(run.data.params["training.weight_decay"]) == pytest.approx(params["training.weight_decay"])
        points = client.get_metric_history(run.info.run_id, "validation/mean_recall_at_1")
        assert {point.step: point.value for point in points} == pytest.approx(scores)
        assert len(points) == len(scores)
    return trials


def with_and_without_kills(
    tmp_path: Path, digits: Path, database: bytes, trials: int, kills: int
) -> tuple[Path, Path]:
    """The folders of a study that was not killed, and of one that was killed ``kills`` times and resumed."""
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    for folder in (undisturbed, disturbed):
        folder.mkdir()
        (folder / "mlflow.db").write_bytes(database)
    finished(undisturbed, digits, trials)
    chance = random.Random(7)
    for kill in range(1, kills + 1):
        lines = len(events(undisturbed)) * kill // (kills + 1)
        killed_after(disturbed, digits, trials, lines, chance.uniform(0, 0.4))
    finished(disturbed, digits, trials)
    return undisturbed, disturbed


@pytest.mark.parametrize(("trials", "kills"), [(4, 1), pytest.param(12, 5, marks=pytest.mark.long)])
def test_a_killed_study_ends_as_an_undisturbed_one(
    tmp_path: Path, digits: Path, mlflow_database: bytes, trials: int, kills: int
) -> None:
    undisturbed, disturbed = with_and_without_kills(tmp_path, digits, mlflow_database, trials, kills)
    assert outcome(disturbed) == outcome(undisturbed)
    ended = [event["trial"] for event in events(disturbed) if event["event"] == "ended"]
    assert sorted(ended) == [f"trial-{number:03d}" for number in range(trials)]
    starts = [event["trial"] for event in events(disturbed) if event["event"] == "started"]
    assert trials <= len(starts) <= trials + kills  # one trial at a time: each kill repeats at most one


@pytest.mark.long
def test_a_study_stopped_with_ctrl_c_can_be_resumed(tmp_path: Path, digits: Path) -> None:
    driver = start(tmp_path, digits, 3)
    for _ in range(1200):
        if len(events(tmp_path)) >= 4:
            break
        assert driver.poll() is None, (tmp_path / "driver.log").read_text()
        time.sleep(0.05)
    os.kill(driver.pid, signal.SIGINT)
    assert driver.wait(timeout=60) == 130, (tmp_path / "driver.log").read_text()
    client = mlflow.MlflowClient(tracking_uri=default_tracking_uri(tmp_path))
    experiment = client.get_experiment_by_name("siclip")
    states = {run.info.run_name: run.info.status for run in client.search_runs([experiment.experiment_id])}
    assert states["s"] == "KILLED" and "RUNNING" not in states.values()
    finished(tmp_path, digits, 3)
    assert len(outcome(tmp_path)) == 3
