"""A command whose work is done says in its exit code that MLflow lacks records of it."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest
import typer
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from typer.testing import CliRunner

from siclip_platform.cli import app
from siclip_platform.cli.guard import guarded
from siclip_platform.display import Display
from siclip_platform.studies import session, shortfall
from siclip_platform.tracking import Tracker, default_tracking_uri


@pytest.fixture
def tracker(tmp_path: Path, mlflow_database: bytes, monkeypatch: pytest.MonkeyPatch) -> Tracker:
    (tmp_path / "mlflow.db").write_bytes(mlflow_database)
    monkeypatch.setattr(shortfall, "_missing", [])
    monkeypatch.setattr("siclip_platform.tracking.sender.PAUSES", (0.05,))
    return Tracker(default_tracking_uri(tmp_path), spool=tmp_path / "s")


def exit_code_of(tracker: Tracker, folder: Path) -> object:
    job = typer.Typer()
    job.command()(lambda: session._close(tracker, Display(), folder, 5))
    with pytest.raises(SystemExit) as ended:
        guarded(lambda: job([]))
    return ended.value.code


def test_all_is_sent(tracker: Tracker, tmp_path: Path) -> None:
    tracker.start("a", "train", params={}, tags={}).finish("completed")
    assert exit_code_of(tracker, tmp_path / "s") == 0


def test_a_refused_record_is_told_and_sync_tells_it_too(
    tracker: Tracker, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tracker.start("a", "train", params={}, tags={})
    run.artifact(tmp_path / "missing.txt")
    run.finish("completed")
    assert exit_code_of(tracker, tmp_path / "s") == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "1 records are not in MLflow: siclip-platform sync" in printed
    result = CliRunner().invoke(app, ["sync", str(tmp_path)])
    assert result.exit_code != 0 and "MLflow refused 1 records" in str(result.exception)
    (tmp_path / "missing.txt").write_text("it is back")
    assert CliRunner().invoke(app, ["sync", str(tmp_path)]).exit_code == 0


def test_records_that_wait_are_told(tracker: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(*given: object, **named: object) -> None:
        raise mlflow.MlflowException("connection refused")

    monkeypatch.setattr(tracker.client, "create_run", silent)
    tracker.start("a", "train", params={}, tags={})
    assert exit_code_of(tracker, tmp_path / "s") == 1


def test_a_value_that_mlflow_refuses_is_told(
    tracker: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: object, **named: object) -> None:
        raise mlflow.MlflowException("not valid", error_code=INVALID_PARAMETER_VALUE)

    monkeypatch.setattr(tracker.client, "log_batch", refuse)
    tracker.start("a", "train", params={"x": 1}, tags={})
    assert exit_code_of(tracker, tmp_path / "s") == 1
