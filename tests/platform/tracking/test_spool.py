"""Everything reaches MLflow through the spool, once, while its server comes and goes and after a kill."""

from __future__ import annotations

import shutil
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import mlflow
import pytest
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST
from mlflow_server import free_port, server

from siclip.errors import UserError
from siclip_platform.tracking import Tracker, default_tracking_uri, sync
from siclip_platform.tracking.models import MODEL_KEY
from siclip_platform.tracking.spool import Spool
from siclip_platform.tracking.store import connect

DOWN = mlflow.MlflowException("API request failed: connection refused")


class Flaky:
    """A client whose calls fail before the request (``before``), after the server has handled it (``after``) or not.

    Args:
        uri: the store.
        verdict: called with each method's name; returns ``before``, ``after`` or None.
    """

    def __init__(self, uri: str, verdict: Callable[[str], str | None]) -> None:
        self.real = connect(uri)
        self.verdict = verdict
        self.failures = 0

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            verdict = self.verdict(name)
            self.failures += verdict is not None
            if verdict == "before":
                raise DOWN
            result = getattr(self.real, name)(*args, **options)
            if verdict == "after":
                raise DOWN
            return result

        return call


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables: creating them takes seconds, copying them does not."""
    folder = tmp_path_factory.mktemp("empty")
    connect(default_tracking_uri(folder)).search_experiments()
    return folder / "mlflow.db"


@pytest.fixture
def uri(tmp_path: Path, empty_store: Path) -> str:
    shutil.copyfile(empty_store, tmp_path / "mlflow.db")
    return default_tracking_uri(tmp_path)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("siclip_platform.tracking.sender.PAUSES", (0.01,))


def write_study(tracker: Tracker, file: Path) -> None:
    """A study of two trials with every kind of record."""
    study = tracker.start("s", "study", params={f"p{i}": i for i in range(150)}, tags={"study": "s"}, key="s")
    study.dataset("digits", "0123abcd", file.parent)
    for number in range(2):
        trial = tracker.start(
            f"trial-{number}", "trial", params={"x": number}, tags={}, parent=study, key=f"s/{number}"
        )
        for step in range(1, 6):
            trial.log(step, {"train/loss": number + 1 / step})
            trial.flush()
        trial.tag(note="text")
        trial.artifact(file)
        trial.finish("completed", {"cost/steps": 5, "cost/seconds": 1.5})
    study.finish("completed")


def read_store(uri: str) -> dict[str, Any]:
    """All runs of the store by name, without ids and times."""
    client = connect(uri)
    experiment = client.get_experiment_by_name("siclip")
    runs = client.search_runs([experiment.experiment_id])
    names = {run.info.run_id: run.info.run_name for run in runs}
    return {
        f"{run.info.run_name}#{sum(n == run.info.run_name for n in names.values())}": (
            run.info.status,
            dict(run.data.params),
            {k: v for k, v in run.data.tags.items() if k.startswith("siclip.")},
            names.get(run.data.tags.get("mlflow.parentRunId")),
            {
                key: [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, key)]
                for key in run.data.metrics
            },
            [(item.dataset.name, item.dataset.digest) for item in run.inputs.dataset_inputs],
            [item.path for item in client.list_artifacts(run.info.run_id)],
        )
        for run in runs
    }


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> dict[str, Any]:
    """The content of the store after an undisturbed study."""
    out = tmp_path_factory.mktemp("undisturbed")
    shutil.copyfile(empty_store, out / "mlflow.db")
    (out / "file.txt").write_text("x")
    tracker = Tracker(default_tracking_uri(out), artifacts=out / "artifacts")
    write_study(tracker, out / "file.txt")
    assert tracker.close() == 0
    store = read_store(default_tracking_uri(out))
    assert sorted(store) == ["s#1", "trial-0#1", "trial-1#1"]
    assert store["trial-1#1"][3] == "s" and store["trial-1#1"][4]["train/loss"][-1] == (5, 1.2)
    return store


@pytest.mark.parametrize("when", ["before", "after"])
def test_every_call_fails_once_and_every_event_arrives_once(
    tmp_path: Path, uri: str, expected: dict[str, Any], quick: None, when: str
) -> None:
    """``after``: the answer of the server was lost, or the driver was killed before it recorded the answer."""
    (tmp_path / "file.txt").write_text("x")
    failed: dict[str, int] = {}

    def every_other(name: str) -> str | None:
        failed[name] = failed.get(name, 0) + 1
        return when if failed[name] % 2 else None

    client = Flaky(uri, every_other)
    tracker = Tracker(uri, artifacts=tmp_path / "artifacts", spool=tmp_path / "s", client=client)
    write_study(tracker, tmp_path / "file.txt")
    assert tracker.close() == 0
    assert client.failures > 20
    assert {"create_run", "log_batch", "log_inputs", "log_artifact", "set_terminated"} <= set(failed)
    assert read_store(uri) == expected


def test_events_wait_while_the_server_does_not_answer_and_sync_sends_them(
    tmp_path: Path, uri: str, expected: dict[str, Any], quick: None
) -> None:
    (tmp_path / "file.txt").write_text("x")
    calls = 0

    def stops_answering(name: str) -> str | None:
        nonlocal calls
        calls += 1
        return "before" if calls > 8 else None

    tracker = Tracker(uri, artifacts=tmp_path / "artifacts", spool=tmp_path / "s", client=Flaky(uri, stops_answering))
    write_study(tracker, tmp_path / "file.txt")
    until = time.monotonic() + 60
    while not tracker.sender.reason and time.monotonic() < until:
        time.sleep(0.01)
    assert "connection refused" in tracker.sender.reason
    left = tracker.close(timeout_seconds=0.3)
    assert left > 10
    with pytest.raises(UserError, match="another process is writing"):
        spool = Spool(tmp_path / "s")
        try:
            sync(tmp_path)
        finally:
            spool.close()
    (synced,) = sync(tmp_path)
    assert (synced.waited, synced.waiting, synced.problems) == (left, 0, [])
    assert sync(tmp_path)[0].waited == 0
    assert read_store(uri) == expected


def test_sync_requires_a_folder_with_a_spool(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no spool\.db in"):
        sync(tmp_path)


def test_a_resumed_run_ignores_known_steps_and_reopens_only_after_an_interrupt(tmp_path: Path, uri: str) -> None:
    def start(tracker: Tracker, key: str) -> Any:
        return tracker.start(key, "trial", params={"x": 1}, tags={}, key=key)

    first = Tracker(uri, spool=tmp_path / "s")
    for key, state in (("a", "interrupted"), ("b", "failed"), ("c", None)):
        run = start(first, key)
        run.log(1, {"train/loss": 1.0})
        run.log(2, {"train/loss": 0.5})
        run.flush()
        if state:
            run.finish(state)
    assert first.close() == 0

    second = Tracker(uri, spool=tmp_path / "s")
    for key in "abc":
        run = start(second, key)
        run.log(2, {"train/loss": 99.0})
        run.log(3, {"train/loss": 0.25})
        run.finish("completed")
    assert second.close() == 0
    store = read_store(uri)
    assert sorted(store) == ["a#1", "b#1", "c#1"]
    for key in "abc":
        assert store[f"{key}#1"][4]["train/loss"] == [(1, 1.0), (2, 0.5), (3, 0.25)]
    assert [store[f"{key}#1"][0] for key in "abc"] == ["FINISHED", "FAILED", "FINISHED"]
    assert store["b#1"][2]["siclip.state"] == "failed"


def test_a_pruned_run_is_killed_in_mlflow_and_is_not_reopened(tmp_path: Path, uri: str) -> None:
    """MLflow has one status for what was interrupted and for what a scheduler stopped; only the first may go on."""
    first = Tracker(uri, spool=tmp_path / "s")
    for key, state in (("s/pruned", "pruned"), ("s/stopped", "interrupted")):
        first.start(key, "trial", params={}, tags={}, key=key).finish(state)  # type: ignore[arg-type]
    assert first.close() == 0
    assert {name: run[0] for name, run in read_store(uri).items()} == dict.fromkeys(
        ("s/pruned#1", "s/stopped#1"), "KILLED"
    )
    # The second has lost the spool.
    for folder in ("s", "new"):
        tracker = Tracker(uri, spool=tmp_path / folder)
        tracker.reconcile("s")
        assert tracker.spool.ended("s/pruned") == "PRUNED" and tracker.spool.ended("s/stopped") == "KILLED"
        tracker.close()
    again = Tracker(uri, spool=tmp_path / "s")
    for key in ("s/pruned", "s/stopped"):
        again.start(key, "trial", params={}, tags={}, key=key)
    assert again.close() == 0
    store = read_store(uri)
    assert [store[f"s/{name}#1"][0] for name in ("pruned", "stopped")] == ["KILLED", "RUNNING"]
    assert store["s/pruned#1"][2]["siclip.state"] == "pruned"


def test_an_event_that_mlflow_refuses_is_set_aside_and_listed(tmp_path: Path, uri: str, quick: None) -> None:
    tracker = Tracker(uri, spool=tmp_path / "s")
    run = tracker.start("a", "trial", params={"x": 1}, tags={}, key="a")
    tracker.spool.put("a", ("params", {"params": [("x", "another value")]}))
    run.artifact(tmp_path / "missing.txt")
    run.finish("completed")
    assert tracker.flush() == 0
    problems = tracker.spool.problems()
    assert len(problems) == 2
    assert problems[0].startswith("params: ") and "missing.txt does not exist" in problems[1]
    assert tracker.client.get_run(run.run_id).info.status == "FINISHED"
    tracker.close()


def test_the_events_of_a_run_that_mlflow_refuses_to_create_are_set_aside(
    tmp_path: Path, uri: str, quick: None
) -> None:
    client = Flaky(uri, lambda name: None)
    refused = mlflow.MlflowException("no such experiment", error_code=RESOURCE_DOES_NOT_EXIST)
    client.create_run = Mock(side_effect=refused)  # type: ignore[attr-defined]
    tracker = Tracker(uri, spool=tmp_path / "s", client=client)
    run = tracker.start("a", "trial", params={"x": 1}, tags={}, key="a")
    run.finish("completed")
    assert tracker.flush() == 0
    assert client.create_run.call_count == 5, "it may be a passing error"
    assert tracker.spool.problems() == [
        "create: no such experiment",
        "params: run a could not be created",
        "tags: run a could not be created",
        "end: run a could not be created",
    ]
    tracker.close()
    (synced,) = sync(tmp_path)
    assert (synced.sent, synced.waiting, synced.problems) == (4, 0, [])
    assert read_store(uri)["a#1"][0] == "FINISHED"


def test_a_run_below_one_that_could_not_be_created_waits_for_it(tmp_path: Path, uri: str, quick: None) -> None:
    client = Flaky(uri, lambda name: None)
    refused = mlflow.MlflowException("no such experiment", error_code=RESOURCE_DOES_NOT_EXIST)
    client.create_run = Mock(side_effect=[refused] * 5)  # type: ignore[attr-defined]
    tracker = Tracker(uri, spool=tmp_path / "s", client=client)
    study = tracker.start("study", "study", params={}, tags={}, key="s")
    tracker.start("trial", "trial", params={}, tags={}, parent=study, key="s/t").finish("completed")
    study.finish("completed")
    assert tracker.close() == 0
    assert sync(tmp_path)[0].problems == []
    store = read_store(uri)
    assert store["trial#1"][3] == "study" and store["trial#1"][0] == "FINISHED"


def test_a_full_disk_is_waited_for(tmp_path: Path, uri: str, expected: dict[str, Any], quick: None) -> None:
    (tmp_path / "file.txt").write_text("x")
    tracker = Tracker(uri, artifacts=tmp_path / "artifacts", spool=tmp_path / "s")

    def pages(limit: int) -> None:
        with tracker.spool._lock:
            tracker.spool._data.execute(f"PRAGMA max_page_count = {limit}")

    pages(1)  # SQLite reduces it to the present size, and then says that the disk is full
    space = threading.Timer(2.0, pages, [10**6])
    space.start()
    began = time.monotonic()
    write_study(tracker, tmp_path / "file.txt")
    assert time.monotonic() - began > 1, "the disk was full"
    assert tracker.close() == 0
    assert read_store(uri) == expected


def test_a_damaged_spool_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "spool.db").write_bytes(b"this is no database" * 100)
    for _ in range(2):  # the first refusal releases the lock
        with pytest.raises(UserError, match=r"spool\.db cannot be used .* move it"):
            Spool(tmp_path)


@pytest.mark.parametrize("lost", ["spool", "store", "a run of the store"])
def test_what_was_lost_is_written_again_before_a_study_is_resumed(
    tmp_path: Path, uri: str, expected: dict[str, Any], empty_store: Path, lost: str
) -> None:
    (tmp_path / "file.txt").write_text("x")
    first = Tracker(uri, artifacts=tmp_path / "artifacts", spool=tmp_path / "s")
    write_study(first, tmp_path / "file.txt")
    assert first.close() == 0
    before = {run.info.run_id for run in runs_in(uri)}
    if lost == "spool":
        for file in (tmp_path / "s").glob("spool.db*"):
            file.unlink()
    elif lost == "store":
        shutil.copyfile(empty_store, tmp_path / "mlflow.db")
    else:
        with closing(sqlite3.connect(tmp_path / "mlflow.db")) as data, data:
            (run_id,) = data.execute("SELECT run_uuid FROM runs WHERE name = 'trial-1'").fetchone()
            for table in ("params", "metrics", "latest_metrics", "tags", "runs"):
                data.execute(f"DELETE FROM {table} WHERE run_uuid = ?", (run_id,))

    second = Tracker(uri, artifacts=tmp_path / "artifacts", spool=tmp_path / "s")
    done = second.reconcile("s")
    assert (done.adopted, done.sent_again) == {"spool": (3, 0), "store": (0, 3)}.get(lost, (0, 1))
    write_study(second, tmp_path / "file.txt")  # repeats what it did before, as a resumed study does
    assert second.flush() == 0 and second.spool.problems() == []
    second.close()
    # A lost spool does not know which files it sent, so it logs their sizes again.
    assert without_sizes(read_store(uri)) == without_sizes(expected)
    if lost == "spool":
        assert {run.info.run_id for run in runs_in(uri)} == before


def without_sizes(store: dict[str, Any]) -> dict[str, Any]:
    return {
        name: [
            {key: value for key, value in part.items() if key != "cost/artifact_bytes"}
            if isinstance(part, dict)
            else part
            for part in run
        ]
        for name, run in store.items()
    }


def runs_in(uri: str) -> list[Any]:
    client = connect(uri)
    return list(client.search_runs([client.get_experiment_by_name("siclip").experiment_id]))


def test_sync_writes_a_lost_store_again(
    tmp_path: Path, uri: str, expected: dict[str, Any], empty_store: Path
) -> None:
    (tmp_path / "file.txt").write_text("x")
    tracker = Tracker(uri, artifacts=tmp_path / "artifacts", spool=tmp_path / "s")
    write_study(tracker, tmp_path / "file.txt")
    assert tracker.close() == 0
    shutil.copyfile(empty_store, tmp_path / "mlflow.db")
    assert sync(tmp_path)[0].problems == []
    assert read_store(uri) == expected


def test_a_damaged_store_is_refused_before_a_study_is_resumed(tmp_path: Path, uri: str) -> None:
    assert Tracker(uri, spool=tmp_path / "s").close() == 0
    (tmp_path / "mlflow.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(UserError, match="cannot be used as an MLflow store"):
        Tracker(uri, spool=tmp_path / "s")


def test_a_checkpoint_becomes_one_logged_model_with_a_signature_and_one_version_in_the_registry(
    tmp_path: Path, uri: str, nano_teacher: Path, quick: None
) -> None:
    failed: dict[str, int] = {}

    def first_call(name: str) -> str | None:
        failed[name] = failed.get(name, 0) + 1
        return "after" if failed[name] <= 1 else None

    tracker = Tracker(uri, artifacts=tmp_path / "artifacts", spool=tmp_path / "s", client=Flaky(uri, first_call))
    run = tracker.start("best", "best", params={}, tags={}, key="best")
    run.model(nano_teacher, "best", register="siclip-digits")
    run.finish("completed")
    assert tracker.flush(30) == 0, tracker.sender.reason
    assert tracker.spool.problems() == []
    client = connect(uri)
    (model,) = client.search_logged_models([tracker.experiment_id])
    assert model.tags[MODEL_KEY] == "best/best"
    assert str(model.status) == "READY"
    assert model.source_run_id == run.run_id
    (version,) = client.search_model_versions("name = 'siclip-digits'")
    assert version.run_id == run.run_id
    mlflow.set_tracking_uri(uri)
    try:
        info = mlflow.models.get_model_info(f"models:/{model.model_id}")
        signature = info.signature
        folder = Path(mlflow.artifacts.download_artifacts(f"models:/{model.model_id}"))
    finally:
        mlflow.set_tracking_uri(None)
    assert [spec.name for spec in signature.inputs.inputs] == ["images", "tokens"]
    assert signature.inputs.inputs[0].shape[1] == 3
    assert (folder / "model.pt").read_bytes() == nano_teacher.read_bytes()
    tracker.close()


@pytest.mark.long
def test_a_real_server_that_was_stopped_for_a_minute_gets_every_event_once(
    tmp_path: Path, expected: dict[str, Any]
) -> None:
    (tmp_path / "file.txt").write_text("x")
    port = free_port()
    with server(port, tmp_path):
        tracker = Tracker(f"http://127.0.0.1:{port}", spool=tmp_path / "s")
        tracker.start("before", "train", params={}, tags={}, key="before").finish("completed")
        assert tracker.flush(60) == 0
    write_study(tracker, tmp_path / "file.txt")
    time.sleep(60)
    assert tracker.spool.waiting() > 10
    with server(port, tmp_path):
        assert tracker.close(timeout_seconds=120) == 0
        store = read_store(f"http://127.0.0.1:{port}")
    store.pop("before#1")
    assert store == expected
