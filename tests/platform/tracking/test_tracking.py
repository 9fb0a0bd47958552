"""Runs in an MLflow store, and the checks of a store's URI."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import mlflow
import pytest

from siclip.errors import UserError
from siclip_platform.studies.options import unused_name
from siclip_platform.tracking import TrackedRun, Tracker, check_store_exists, check_tracking, default_tracking_uri
from siclip_platform.tracking.address import read_address, without_password


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    out = tmp_path_factory.mktemp("tracking")
    return Tracker(default_tracking_uri(out), artifacts=out / "artifacts")


def test_runs_are_nested_and_have_params_metrics_tags_and_files(tracker: Tracker, tmp_path: Path) -> None:
    study = tracker.start("wikd", "study", params={"study.trials": 8}, tags={"study": "wikd"})
    params = {f"loss.p{i}": i for i in range(230)}  # more than MLflow accepts in one batch
    trial = tracker.start("trial", "trial", params=params, tags={"study": "wikd", "trial": "t1"}, parent=study)
    for step in range(1, 1501):
        trial.log(step, {"train/loss": 1 / step})
    trial.log(1500, {"validation/mean_recall@1": 0.5})
    (tmp_path / "file.txt").write_text("x")
    trial.artifact(tmp_path / "file.txt")
    trial.finish("pruned", {"cost/steps": 1500, "cost/seconds": float("nan")}, reason="stopped")
    assert tracker.flush() == 0

    client = mlflow.MlflowClient(tracking_uri=tracker.uri)
    run = client.get_run(trial.run_id)
    assert run.data.params == {key: str(value) for key, value in params.items()}
    assert run.data.tags["mlflow.parentRunId"] == study.run_id
    tags = {name: run.data.tags[f"siclip.{name}"] for name in ("kind", "state", "trial", "reason")}
    assert tags == {"kind": "trial", "state": "pruned", "trial": "t1", "reason": "stopped"}
    history = client.get_metric_history(trial.run_id, "train/loss")
    assert {point.step: point.value for point in history} == {step: 1 / step for step in range(1, 1501)}
    assert run.data.metrics["validation/mean_recall_at_1"] == 0.5
    assert "cost/seconds" not in run.data.metrics
    assert run.info.status == "KILLED"  # pruned
    assert [item.path for item in client.list_artifacts(trial.run_id)] == ["file.txt"]


def test_a_study_gets_a_name_that_is_unused_in_the_store_and_in_the_folder(tracker: Tracker, tmp_path: Path) -> None:
    for expected in ("named", "named-2"):
        name = unused_name("named", tracker.study_names(), tmp_path)
        assert name == expected
        tracker.start(name, "study", params={}, tags={"study": name})
        assert tracker.flush() == 0
    (tmp_path / "named-3").mkdir()
    assert unused_name("named", tracker.study_names(), tmp_path) == "named-4"


def test_a_file_that_is_not_a_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("not a database, and much longer than the header of one")
    with pytest.raises(UserError, match="cannot be used as an MLflow store"):
        Tracker(f"sqlite:///{tmp_path}/text.db")


def test_several_threads_can_log_at_a_time(tracker: Tracker) -> None:
    runs = [tracker.start(f"r{i}", "train", params={}, tags={}) for i in range(4)]
    threads = [
        threading.Thread(target=lambda r=run: [r.log(s, {"train/loss": s}) for s in range(600)]) for run in runs
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for run in runs:
        run.finish("completed")
    assert tracker.flush() == 0
    for run in runs:
        assert len(tracker.client.get_metric_history(run.run_id, "train/loss")) == 600


def test_the_bytes_of_each_file_count_once_from_any_thread_and_after_a_restart(
    tmp_path: Path, mlflow_database: bytes
) -> None:
    (tmp_path / "mlflow.db").write_bytes(mlflow_database)
    files = [tmp_path / f"{number}.txt" for number in range(12)]
    for number, path in enumerate(files):
        path.write_bytes(b"x" * 2**number)

    def start() -> tuple[Tracker, TrackedRun]:
        tracker = Tracker(default_tracking_uri(tmp_path), artifacts=tmp_path / "artifacts", spool=tmp_path / "spool")
        return tracker, tracker.start("r", "train", params={}, tags={}, key="r", reopen=True)

    def logged(tracker: Tracker, run: TrackedRun) -> list[float]:
        run.flush()
        assert tracker.flush() == 0 and tracker.spool.problems() == []
        points = tracker.client.get_metric_history(run.run_id, "cost/artifact_bytes")
        return [point.value for point in sorted(points, key=lambda point: point.step)]

    tracker, run = start()
    threads = [
        threading.Thread(target=lambda part=files[n:10:4]: [run.artifact(path) for path in part]) for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert logged(tracker, run)[-1] == 2**10 - 1
    tracker.close()

    tracker, run = start()
    for path in (files[3], files[11]):
        run.artifact(path)
    values = logged(tracker, run)
    assert values == sorted(values) and len(values) == 11 and values[-1] == 2**10 - 1 + 2**11
    files[11].write_bytes(b"x" * 7)  # overwritten, so sent again
    run.artifact(files[11])
    assert logged(tracker, run)[-1] == 2**10 - 1 + 7
    tracker.close()


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("ftp://x/y", "write sqlite:///"),
        ("http://ann:s/cr@127.0.0.1:{port}", "%2F"),
        ("sqlite:///relative.db", "ABSOLUTE"),
        ("sqlite:////proc/nothing/mlflow.db", "cannot be created"),
        ("http://127.0.0.1:{port}", "does not answer"),
    ],
)
def test_a_store_that_cannot_be_used_is_refused_within_seconds(uri: str, message: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(UserError, match=message):
            check_tracking(uri.format(port=unused.getsockname()[1]), timeout_seconds=2)


def test_a_reader_does_not_create_a_store(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no MLflow store at"):
        check_store_exists(f"sqlite:///{tmp_path}/mlflow.db")
    assert not (tmp_path / "mlflow.db").exists()


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("https://user:secret@host:5000/p", "https://host:5000/p"),
        ("https://user:se@ret@host", "https://host"),
        ("https://user:se/cret@host/p", "https://host/p"),
        ("http://host:5000/p@q", "http://host:5000/p@q"),
        ("postgresql://user:se?c#ret@host/d", "postgresql://host/d"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("sqlite:////a/b@c/mlflow.db", "sqlite:////a/b@c/mlflow.db"),
    ],
)
def test_a_password_is_removed_from_a_uri(uri: str, expected: str) -> None:
    assert without_password(uri) == expected


@pytest.mark.parametrize("kind", ["postgresql", "mysql+pymysql", "databricks", "ftp", "sqlite"])
@pytest.mark.parametrize("login", ["ann:s3cret", "ann:s3/cret", "ann:s3?cret", "ann:s3#c@ret"])
def test_a_refused_uri_does_not_show_its_password(kind: str, login: str) -> None:
    with pytest.raises(UserError) as refused:
        check_tracking(f"{kind}://{login}@host/d?password=s3cret")
    assert "s3" not in str(refused.value)


def test_user_and_password_may_be_percent_encoded() -> None:
    address = read_address("https://ann%40x:p%3Aw%2F@host:5000/base")
    assert (address.uri, address.user, address.password) == ("https://host:5000/base", "ann@x", "p:w/")
