"""Each patch of MLflow changes what it claims to change, and the installed MLflow still needs it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import mlflow.system_metrics
import pytest
from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES, MLFLOW_HTTP_REQUEST_TIMEOUT

from siclip_platform.tracking import Tracker, default_tracking_uri
from siclip_platform.tracking.mlflow_patches import HTTP_LIMITS, limit_http_requests, read_monitors, system_monitors
from siclip_platform.tracking.system import system_metrics


def test_mlflow_waits_longer_and_retries_more_often_than_our_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in HTTP_LIMITS:
        monkeypatch.delenv(name, raising=False)
    assert MLFLOW_HTTP_REQUEST_MAX_RETRIES.get() > 1 and MLFLOW_HTTP_REQUEST_TIMEOUT.get() > 20  # why it is needed
    limit_http_requests()
    assert (MLFLOW_HTTP_REQUEST_MAX_RETRIES.get(), MLFLOW_HTTP_REQUEST_TIMEOUT.get()) == (1, 20)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "7")
    limit_http_requests()
    assert MLFLOW_HTTP_REQUEST_TIMEOUT.get() == 7


CREATE = {
    "without": "import mlflow; mlflow.MlflowClient(tracking_uri={uri!r}).search_experiments()",
    "with": "from siclip_platform.tracking.store import connect; connect({uri!r}).search_experiments()",
}


@pytest.mark.slow
def test_mlflow_logs_lines_when_it_creates_a_store(tmp_path: Path) -> None:
    running = {
        name: subprocess.Popen(
            [sys.executable, "-c", code.format(uri=f"sqlite:///{tmp_path}/{name}.db")],
            stderr=subprocess.PIPE,
            text=True,
            env={name: value for name, value in os.environ.items() if name != "MLFLOW_LOGGING_LEVEL"},
        )
        for name, code in CREATE.items()
    }
    errors = {name: process.communicate(timeout=300)[1] for name, process in running.items()}
    assert all(process.returncode == 0 for process in running.values()), errors
    assert "INFO mlflow" in errors["without"]  # why it is needed
    assert "INFO" not in errors["with"]


DOWNLOAD = """
from pathlib import Path
{client}
client.search_experiments()
run = client.create_run("0").info.run_id
Path({folder!r}, "note.txt").write_text("x")
client.log_artifact(run, {folder!r} + "/note.txt")
client.download_artifacts(run, "note.txt", {folder!r})
"""
CLIENTS = {
    "without": "import mlflow; client = mlflow.MlflowClient(tracking_uri={uri!r})",
    "with": "from siclip_platform.tracking.store import connect; client = connect({uri!r})",
}


@pytest.mark.slow
def test_mlflow_draws_bars_when_it_downloads(tmp_path: Path, mlflow_database: bytes) -> None:
    errors: dict[str, str] = {}
    for name, client in CLIENTS.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "mlflow.db").write_bytes(mlflow_database)
        code = DOWNLOAD.format(client=client.format(uri=f"sqlite:///{folder}/mlflow.db"), folder=str(folder))
        plain = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_ENABLE")}
        ended = subprocess.run(
            [sys.executable, "-c", code],
            env=plain,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        errors[name] = ended.stderr
    assert "Downloading artifacts" in errors["without"]  # why it is needed
    assert "Downloading" not in errors["with"]


def test_the_public_module_of_system_metrics_has_no_monitors() -> None:
    """A new public name may replace `system_monitors`."""
    functions = {name for name in vars(mlflow.system_metrics) if "system_metrics" in name and name.islower()}
    assert functions == {
        "enable_system_metrics_logging",
        "disable_system_metrics_logging",
        "set_system_metrics_node_id",
        "set_system_metrics_samples_before_logging",
        "set_system_metrics_sampling_interval",
    }


def test_monitors_read_the_load_of_this_machine() -> None:
    values = read_monitors(system_monitors())
    assert 0 < values["system_memory_usage_percentage"] <= 100
    assert {"cpu_utilization_percentage", "disk_usage_percentage", "network_receive_megabytes"} <= set(values)


def test_the_load_is_logged_to_the_run_until_the_block_ends(tmp_path: Path, mlflow_database: bytes) -> None:
    (tmp_path / "mlflow.db").write_bytes(mlflow_database)
    tracker = Tracker(default_tracking_uri(tmp_path))
    run = tracker.start("r", "study", params={}, tags={})
    with system_metrics(run, every_seconds=0.05):
        while not run._last.get("system/system_memory_usage_percentage"):  # two samples: steps 0 and 1
            threading.Event().wait(0.05)
    assert "system-metrics" not in {thread.name for thread in threading.enumerate()}
    assert tracker.flush() == 0
    points = tracker.client.get_metric_history(run.run_id, "system/system_memory_usage_percentage")
    assert [point.step for point in points] == list(range(len(points))) and len(points) >= 2
    tracker.close()
