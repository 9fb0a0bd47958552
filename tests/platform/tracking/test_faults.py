"""A server whose answers get lost, come late, are forged or need a login: one run each, and nothing lost."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow_server import Fault, free_port, proxy, server

from siclip.errors import UserError
from siclip_platform.tracking import Tracker, sync
from siclip_platform.tracking.mlflow_patches import HTTP_LIMITS
from siclip_platform.tracking.store import connect, open_store

pytestmark = pytest.mark.slow
CREATE, LOG = "/runs/create", "/runs/log-batch"


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory, mlflow_database: bytes) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "mlflow.db").write_bytes(mlflow_database)
    with server(free_port(), folder) as uri:
        yield uri


@pytest.fixture(autouse=True)
def limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limits that a command starts with, short pauses, and no login of another test."""
    for name in (*HTTP_LIMITS, "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")  # so that it is removed at the end of the test
        monkeypatch.delenv(name)
    monkeypatch.setattr("siclip_platform.tracking.sender.PAUSES", (0.05,))


class Script:
    """Gives the first requests to an endpoint their faults, in order; counts the requests."""

    def __init__(self, endpoint: str, *faults: Fault) -> None:
        self.endpoint = endpoint
        self.faults = list(faults)
        self.asked = 0

    def __call__(self, path: str) -> Fault:
        if not path.endswith(self.endpoint):
            return None
        self.asked += 1
        return self.faults.pop(0) if self.faults else None


def write_run(tracker: Tracker, key: str) -> None:
    run = tracker.start(key, "train", params={"x": 1}, tags={}, key=key)
    for step in (1, 2, 3):
        run.log(step, {"train/loss": 1 / step})
    run.finish("completed")


def runs_of(uri: str, name: str) -> list[Any]:
    client = connect(uri)
    experiment = client.get_experiment_by_name("siclip")
    return list(client.search_runs([experiment.experiment_id], f"attributes.run_name = '{name}'"))


def check_one_whole_run(uri: str, name: str) -> None:
    (run,) = runs_of(uri, name)
    points = connect(uri).get_metric_history(run.info.run_id, "train/loss")
    assert (run.info.status, run.data.tags["siclip.state"]) == ("FINISHED", "completed")
    assert sorted((point.step, point.value) for point in points) == [(1, 1.0), (2, 0.5), (3, 1 / 3)]


@pytest.mark.parametrize("lost", [1, 3])
def test_a_run_whose_answer_is_lost_is_created_once(mlflow_server: str, tmp_path: Path, lost: int) -> None:
    script = Script(CREATE, *["drop"] * lost)
    with proxy(mlflow_server, script) as uri:
        tracker = Tracker(uri, spool=tmp_path / "s")
        write_run(tracker, f"lost-{lost}")
        assert tracker.close(60) == 0
    assert script.asked == 1, "the run is found by its key before it is created again"
    check_one_whole_run(mlflow_server, f"lost-{lost}")


def test_a_run_that_the_server_creates_after_it_was_asked_again_is_removed(
    mlflow_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    with proxy(mlflow_server, Script(CREATE, 4.0)) as uri:
        tracker = Tracker(uri, spool=tmp_path / "s")
        run = tracker.start("late", "train", params={"x": 1}, tags={}, key="late")
        for step in (1, 2, 3):
            run.log(step, {"train/loss": 1 / step})
        run.flush()
        assert run.run_id
        until = time.monotonic() + 30
        while len(runs_of(mlflow_server, "late")) < 2 and time.monotonic() < until:
            time.sleep(0.1)
        assert len(runs_of(mlflow_server, "late")) == 2, "the server has handled both requests"
        run.finish("completed")
        assert tracker.close(60) == 0
    check_one_whole_run(mlflow_server, "late")


@pytest.mark.parametrize("fault", ["drop", pytest.param(4.0, id="late")])
def test_a_model_and_its_version_are_created_once(
    mlflow_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nano_teacher: Path, fault: Fault
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    name = "dropped" if fault == "drop" else "late"
    models, versions = Script("/logged-models", fault), Script("/model-versions/create", fault)
    with proxy(mlflow_server, lambda path: models(path) or versions(path)) as uri:
        tracker = Tracker(uri, spool=tmp_path / "s")
        run = tracker.start(name, "train", params={}, tags={}, key=name)
        run.model(nano_teacher, name, register=name)
        if fault != "drop":
            client, until = tracker.client, time.monotonic() + 30
            while len(client.search_model_versions(f"name = '{name}'")) < 2 and time.monotonic() < until:
                time.sleep(0.1)
            assert len(logged(tracker, name)) == 2, "the server has handled both requests"
        run.finish("completed")
        assert tracker.flush(60) == 0 and tracker.spool.problems() == []
        (model,) = logged(tracker, name)
        (version,) = tracker.client.search_model_versions(f"name = '{name}'")
        tracker.close()
    assert model.status == "READY" and version.source == model.artifact_location
    asked = 1 if fault == "drop" else 2
    assert (models.asked, versions.asked) == (asked, asked)


def logged(tracker: Tracker, name: str) -> list[Any]:
    return list(tracker.client.search_logged_models([tracker.experiment_id], filter_string=f"name = '{name}'"))


def test_a_404_that_passes_sets_nothing_aside(
    mlflow_server: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with proxy(mlflow_server, Script(LOG, 404, 404, 404)) as uri:
        tracker = Tracker(uri, spool=tmp_path / "s")
        write_run(tracker, "passing")
        assert tracker.flush(60) == 0 and tracker.spool.problems() == []
        tracker.close()
    check_one_whole_run(mlflow_server, "passing")
    assert capfd.readouterr().out == "", "MLflow prints nothing, not even the address of a run that has ended"


def test_what_was_set_aside_is_sent_by_sync(mlflow_server: str, tmp_path: Path) -> None:
    faulty = True

    def faults(path: str) -> Fault:
        return 404 if faulty and path.endswith(LOG) else None

    with proxy(mlflow_server, faults) as uri:
        tracker = Tracker(uri, spool=tmp_path / "s")
        write_run(tracker, "aside")
        assert tracker.flush(60) == 0
        problems = tracker.spool.problems()
        assert len(problems) == 3 and all("forged by the proxy" in problem for problem in problems)
        tracker.close()
        (still,) = sync(tmp_path)
        assert still.problems == problems
        faulty = False
        (synced,) = sync(tmp_path)
        assert (synced.waiting, synced.problems) == (0, []) and synced.sent >= 3
    check_one_whole_run(mlflow_server, "aside")


def test_a_study_on_another_machine_finds_its_runs(mlflow_server: str, tmp_path: Path) -> None:
    first = Tracker(mlflow_server, spool=tmp_path / "first")
    run = first.start("moved", "train", params={"x": 1}, tags={}, key="moved/train")
    for step in (1, 2):
        run.log(step, {"train/loss": 1 / step})
    run.finish("interrupted")
    first.start("other", "train", params={}, tags={}, key="moved2/train")
    assert first.close() == 0

    second = Tracker(mlflow_server, spool=tmp_path / "second")
    assert second.reconcile("moved").adopted == 1
    run = second.start("moved", "train", params={"x": 1}, tags={}, key="moved/train", reopen=True)
    assert run.known
    for step in (1, 2, 3):
        run.log(step, {"train/loss": 1 / step})
    run.finish("completed")
    assert second.close() == 0
    check_one_whole_run(mlflow_server, "moved")


def test_a_login_in_the_uri_is_used_and_never_stored_or_shown(
    mlflow_server: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def with_login(uri: str, password: str) -> str:
        return uri.replace("http://", f"http://ann:{password}@")

    with proxy(mlflow_server, lambda path: None, login=("ann", "s@cr/t-1")) as uri:
        with pytest.raises(UserError, match="refuses the login") as refused:
            Tracker(with_login(uri, "wr0ng"), spool=tmp_path / "refused")
        assert "wr0ng" not in str(refused.value)
        tracker = Tracker(with_login(uri, "s%40cr%2Ft-1"), spool=tmp_path / "s")
        write_run(tracker, "login")
        assert tracker.close() == 0
        assert tracker.address == uri
    with proxy(mlflow_server, lambda path: 500) as uri, pytest.raises(UserError) as failing:
        open_store(with_login(uri, "s%40cr%2Ft-1"), "siclip", None)
    shown = str(failing.value) + "".join(capfd.readouterr())
    stored = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    for secret in ("s@cr/t-1", "s%40cr%2Ft-1"):
        assert secret not in shown and secret.encode() not in stored
    check_one_whole_run(mlflow_server, "login")
    assert os.environ["MLFLOW_TRACKING_USERNAME"] == "ann"
