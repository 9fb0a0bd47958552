"""A study whose tracking server fails: training continues, nothing is lost, nothing is recorded twice."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest

from siclip_platform.recipes.recipe import Recipe
from siclip_platform.search.ledger.recorder import Recorder
from siclip_platform.search.result import StudyResult
from siclip_platform.search.tune_run import run_study
from siclip_platform.tracking import Tracker, default_tracking_uri
from siclip_platform.tracking.store import connect
from tests.support import study_parts as parts

pytestmark = pytest.mark.slow


class Away:
    """A client of a store whose server does not answer while ``down`` returns true."""

    def __init__(self, uri: str, down: Callable[[], bool]) -> None:
        self.real = connect(uri)
        self.down = down

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            if self.down():
                raise mlflow.MlflowException("API request failed: connection refused")
            return getattr(self.real, name)(*args, **options)

        return call


def lines_of(journal: Path) -> int:
    return len(journal.read_bytes().splitlines()) if journal.is_file() else 0


def check_everything_is_recorded(tracker: Tracker, result: StudyResult, decays: list[float]) -> None:
    """Every trial has one run, with every score once and the state of the study's result."""
    runs = tracker.client.search_runs([tracker.experiment_id], "tags.`siclip.study` = 'away'")
    by_name = {run.info.run_name: run for run in runs}
    names = [f"trial-{number:03d}" for number in range(len(decays))]
    assert sorted(by_name) == ["away", *names] and len(runs) == len(by_name)
    pruned = {trial.trial_id for trial in result.trials if trial.state == "pruned"}
    assert all(run.info.status == ("KILLED" if name in pruned else "FINISHED") for name, run in by_name.items())
    for trial, decay, name in zip(result.trials, decays, names, strict=True):
        run = by_name[name]
        assert run.data.tags["siclip.state"] == trial.state
        assert float(run.data.params["training.weight_decay"]) == decay
        scores = {step: parts.score(decay, 0, step) for step in range(2, trial.steps + 1, 2)}
        assert parts.curve(tracker, run, "validation/mean_recall_at_1") == pytest.approx(scores)
        assert parts.curve(tracker, run, "train/loss").keys() == set(range(1, trial.steps + 1))


def test_a_study_whose_tracking_server_fails_until_its_end_loses_nothing(
    own_ray: None, tmp_path: Path, digits: Path, mlflow_database: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("siclip_platform.tracking.sender.PAUSES", (0.01,))
    (tmp_path / "mlflow.db").write_bytes(mlflow_database)
    folder, decays, back = tmp_path / "s", [0.5, 0.2, 0.7], []
    uri = default_tracking_uri(tmp_path)
    client = Away(uri, lambda: not back and lines_of(folder / "journal.jsonl") > 3)
    tracker = Tracker(uri, artifacts=tmp_path / "artifacts", spool=folder, client=client)
    study = tracker.start("away", "study", params={}, tags={"study": "away"}, key="away")
    plan = parts.plan(folder, digits, decays, scheduler=parts.asha())
    result = run_study(plan, Recorder(tracker, study, {"study": "away"}))
    study.finish("completed")
    assert [trial.state for trial in result.trials] == ["completed", "pruned", "completed"]
    assert tracker.flush(0.1) > 10
    back.append(True)
    assert tracker.flush(60) == 0 and tracker.spool.problems() == []
    check_everything_is_recorded(tracker, result, decays)
    tracker.close()


@pytest.mark.long
def test_a_study_whose_real_server_is_down_for_a_minute_loses_nothing(
    own_ray: None, tmp_path: Path, digits: Path
) -> None:
    from mlflow_server import free_port, server

    folder, decays, port = tmp_path / "s", [0.5 + 0.01 * number for number in range(12)], free_port()

    def serve() -> None:
        with server(port, tmp_path):
            up.set()
            while lines_of(folder / "journal.jsonl") < 8:
                time.sleep(0.1)
        stopped.append(time.monotonic())
        time.sleep(60)
        stopped.append(time.monotonic())
        with server(port, tmp_path):
            ended.wait(300)

    up, ended, stopped = threading.Event(), threading.Event(), list[float]()
    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    assert up.wait(120)
    tracker = Tracker(f"http://127.0.0.1:{port}", spool=folder)
    study = tracker.start("away", "study", params={}, tags={"study": "away"}, key="away")
    result = run_study(parts.plan(folder, digits, decays, run=slowly), Recorder(tracker, study, {"study": "away"}))
    assert len(stopped) == 2, "the study ran while the server was down and after it"
    study.finish("completed")
    try:
        assert tracker.flush(180) == 0 and tracker.spool.problems() == []
        check_everything_is_recorded(tracker, result, decays)
    finally:
        tracker.close(1)
        ended.set()
        thread.join(60)


def slowly(recipe: Recipe, reporter: Any, checkpoint: Path | None) -> None:
    """As `pretend`, but takes eight seconds."""
    os.environ["PRETEND_SECONDS"] = "1"
    try:
        parts.pretend(recipe, reporter, checkpoint)
    finally:
        del os.environ["PRETEND_SECONDS"]
