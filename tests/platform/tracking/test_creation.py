"""An sqlite store is created whole: after kills, by several processes at once, and never over what somebody keeps."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from siclip.errors import UserError
from siclip_platform.tracking import default_tracking_uri
from siclip_platform.tracking.store import connect, open_store

OPEN = "import sys; from siclip_platform.tracking.store import open_store; open_store(sys.argv[1], 'siclip', None)"


def half_made(path: Path, whole: bytes) -> None:
    """What MLflow leaves when it is killed in a migration that copies the table of experiments."""
    path.write_bytes(whole)
    with closing(sqlite3.connect(path)) as data, data:
        data.execute("DELETE FROM experiments")
        data.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")
        data.execute("CREATE TABLE _alembic_tmp_experiments (experiment_id INTEGER)")
        for table in ("logged_models", "traces"):
            data.execute(f"DROP TABLE IF EXISTS {table}")


def test_a_half_made_store_is_made_again(tmp_path: Path, mlflow_database: bytes) -> None:
    half_made(tmp_path / "mlflow.db", mlflow_database)
    client, experiment = open_store(default_tracking_uri(tmp_path), "siclip", None)
    assert client.create_run(experiment).info.run_id
    assert {path.name for path in tmp_path.iterdir()} <= {"mlflow.db", ".mlflow.db.lock"}


def test_a_half_made_store_with_runs_is_refused_with_the_remedy(tmp_path: Path, mlflow_database: bytes) -> None:
    half_made(tmp_path / "mlflow.db", mlflow_database)
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as data, data:
        data.execute("INSERT INTO experiments (experiment_id, name, lifecycle_stage) VALUES (7, 'mine', 'active')")
    with pytest.raises(UserError, match="restore the store from a copy"):
        open_store(default_tracking_uri(tmp_path), "siclip", None)
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as data:
        assert data.execute("SELECT name FROM experiments").fetchall() == [("mine",)]


@pytest.mark.parametrize("content", ["foreign", "garbage"])
def test_another_program_s_file_is_not_replaced(tmp_path: Path, content: str) -> None:
    path = tmp_path / "mlflow.db"
    if content == "foreign":
        with closing(sqlite3.connect(path)) as data:
            data.execute("CREATE TABLE alembic_version (version_num TEXT)")
            data.execute("CREATE TABLE theirs (x)")
            data.execute("INSERT INTO theirs VALUES (1)")
            data.execute("INSERT INTO alembic_version VALUES ('v3.0.0.d')")
            data.commit()
    else:
        path.write_bytes(b"this is no database" * 100)
    before = path.read_bytes()
    with pytest.raises(UserError, match="cannot be used as an MLflow store"):
        open_store(default_tracking_uri(tmp_path), "siclip", None)
    if content == "garbage":
        assert path.read_bytes() == before
    else:
        with closing(sqlite3.connect(path)) as data:
            assert data.execute("SELECT x FROM theirs").fetchall() == [(1,)]


@pytest.mark.chaos
@pytest.mark.slow
def test_a_store_whose_creation_was_killed_is_created_by_the_next(tmp_path: Path) -> None:
    uri = default_tracking_uri(tmp_path)
    for seconds in (0.1, 0.7):
        process = subprocess.Popen([sys.executable, "-c", OPEN, uri])
        # The first file of the creation; its name is not fixed.
        until = time.monotonic() + 120
        while not any(path.suffix == ".making" for path in tmp_path.iterdir()) and time.monotonic() < until:
            time.sleep(0.005)
        time.sleep(seconds)
        process.kill()
        process.wait()
        assert not (tmp_path / "mlflow.db").exists()
    assert open_store(uri, "siclip", None)[1]
    assert {path.name for path in tmp_path.iterdir()} == {"mlflow.db", ".mlflow.db.lock"}


@pytest.mark.slow
def test_processes_that_start_at_once_share_a_new_store(tmp_path: Path) -> None:
    uri = default_tracking_uri(tmp_path)
    running = [
        subprocess.Popen([sys.executable, "-c", OPEN, uri], stderr=subprocess.PIPE, text=True) for _ in range(3)
    ]
    errors = [process.communicate(timeout=300)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], errors
    assert sorted(item.name for item in connect(uri).search_experiments()) == ["Default", "siclip"]
