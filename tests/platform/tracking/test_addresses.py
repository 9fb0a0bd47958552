"""sqlite stores in folders with names that URIs read differently, and stores that cannot be written to."""

from __future__ import annotations

import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import mlflow
import pytest

from siclip.errors import UserError
from siclip_platform.cli import main
from siclip_platform.report.read.store import Store
from siclip_platform.tracking import Tracker, check_store_exists, default_tracking_uri
from siclip_platform.tracking.creation import sqlite_file
from siclip_platform.tracking.store import check_usable


@pytest.mark.parametrize("name", ["a%41b", "what?", "50%", "a#b", "two words", "größe", "a?b=c&d", "%2F"])
def test_a_store_is_in_the_folder_that_was_named(name: str, tmp_path: Path, mlflow_database: bytes) -> None:
    out = tmp_path / name
    out.mkdir()
    (out / "mlflow.db").write_bytes(mlflow_database)
    uri = default_tracking_uri(out)
    assert sqlite_file(uri) == out / "mlflow.db"
    check_store_exists(uri)
    tracker = Tracker(uri, artifacts=out / "artifacts")
    file = tmp_path / "note.txt"
    file.write_text("kept")
    run = tracker.start("r", "train", params={}, tags={})
    run.artifact(file)
    run.finish("completed", {"test/x": 1.0})
    assert tracker.close(30) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "note.txt"])
    [note] = (out / "artifacts").rglob("note.txt")
    assert note.read_text() == "kept"
    with closing(sqlite3.connect(out / "mlflow.db")) as data:
        assert data.execute("SELECT value FROM latest_metrics WHERE key = 'test/x'").fetchall() == [(1.0,)]
    store = Store(uri)
    assert [found.name for found in store.search(store.experiment_ids(None))] == ["r"]


def test_a_store_of_such_a_name_is_created_there(tmp_path: Path) -> None:
    check_usable(default_tracking_uri(tmp_path / "a%41?b"))
    assert [path.name for path in tmp_path.iterdir()] == ["a%41?b"]
    assert (tmp_path / "a%41?b" / "mlflow.db").stat().st_size > 0


def garbage(path: Path, database: bytes) -> None:
    path.write_bytes(b"not a database" * 100)


def deleted(path: Path, database: bytes) -> None:
    path.write_bytes(database)
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{path}")
    client.delete_experiment(client.create_experiment("siclip"))


@pytest.mark.parametrize(("spoil", "expected"), [(garbage, "not a database"), (deleted, "was deleted in MLflow")])
def test_evaluate_refuses_a_store_that_cannot_be_used_before_it_reads_a_model(
    spoil: object,
    expected: str,
    digits: Path,
    nano_teacher: Path,
    tmp_path: Path,
    mlflow_database: bytes,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert callable(spoil)
    spoil(tmp_path / "mlflow.db", mlflow_database)

    def open_model(*given: object) -> None:
        raise AssertionError("a model was read first")

    monkeypatch.setattr("siclip_platform.evaluation.models.open_model", open_model)
    store = ["--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db"]
    monkeypatch.setattr(
        sys, "argv", ["siclip-platform", "evaluate", str(nano_teacher), "--data", str(digits), *store]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    error = " ".join(capsys.readouterr().err.split())
    assert ended.value.code == 2 and expected in error, error


def test_a_store_that_may_not_be_written_to_is_refused(
    tmp_path: Path, mlflow_database: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mlflow.db").write_bytes(mlflow_database)
    # The tests may run as root, who may write everywhere.
    monkeypatch.setattr("siclip_platform.tracking.store.os.access", lambda path, mode: Path(path) == tmp_path)
    with pytest.raises(UserError, match=r"mlflow\.db may not be written to"):
        check_usable(default_tracking_uri(tmp_path))
