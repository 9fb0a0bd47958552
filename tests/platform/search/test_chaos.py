"""A study ends as an undisturbed one, whatever is killed meanwhile: driver, worker, raylet or MLflow server."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from threading import Event, Thread

import pytest
from mlflow_server import free_port, server
from ray_nodes import ROOT, Nodes, ray_nodes

from siclip_platform.cluster import losses
from tests.platform.search.test_study_restart import DRIVER, events, outcome

pytestmark = [pytest.mark.chaos, pytest.mark.long, pytest.mark.timeout(3600)]
KINDS = ("driver", "worker", "raylet", "server")
SECONDS = 0.5  # per step of a training: parts are replaced while the study runs
AHEAD = 3  # lines of the journal, beyond those at which the next part is killed, after which trainings wait


class Study:
    """A study whose driver joins a cluster and whose records go to a server; any of them can be killed."""

    def __init__(self, out: Path, digits: Path, trials: int, nodes: Nodes, database: bytes) -> None:
        out.mkdir()
        (out / "mlflow.db").write_bytes(database)
        self.out, self.nodes, self.port = out, nodes, free_port()
        self._server = ExitStack()
        self._starting: Thread | None = None
        self.uri = self._server.enter_context(server(self.port, out))
        self._command = [sys.executable, str(DRIVER), str(out), str(digits), str(trials), self.uri]
        self.start_driver()

    def start_driver(self) -> None:
        log = (self.out / "driver.log").open("a")
        environment = self.nodes.environment
        self.driver = subprocess.Popen(
            self._command, stdout=log, stderr=log, env=environment, cwd=ROOT, start_new_session=True
        )

    def start_server(self) -> None:
        """Start the server again, while the study runs on."""
        start = partial(self._server.enter_context, server(self.port, self.out))
        self._starting = Thread(target=start)
        self._starting.start()

    @property
    def said(self) -> str:
        return (self.out / "driver.log").read_text()

    def wait_for(self, lines: int) -> None:
        """Wait until the journal has so many lines."""
        until = time.monotonic() + 600
        while len(events(self.out)) < lines:
            assert self.driver.poll() is None and time.monotonic() < until, self.said
            time.sleep(0.05)

    def wait_for_loss(self) -> None:
        """Wait until a trial was lost."""
        until = time.monotonic() + 600
        while not any(event["event"] == "lost" for event in events(self.out)):
            assert self.driver.poll() is None and time.monotonic() < until, self.said
            time.sleep(0.05)

    def kill(self, kind: str) -> None:
        """Kill one part. A driver and a node are replaced at once, a server by `start_server`."""
        with (self.out / "kills.txt").open("a") as file:
            file.write(f"{time.strftime('%T')} {kind} after {len(events(self.out))} lines\n")
        if kind == "driver":
            os.kill(self.driver.pid, signal.SIGKILL)
            self.driver.wait()
            if self._starting is not None:
                self._starting.join()  # commands refuse to start without the server
            self.start_driver()
        elif kind == "server":
            self.close_server()
        else:
            node, process = self.nodes.wait_for_busy()
            if kind == "worker":
                process.kill()
            else:
                self.nodes.kill_raylet(node)
                self.nodes.add()

    def close_server(self) -> None:
        if self._starting is not None:
            self._starting.join()
        self._server.close()

    def finish(self) -> None:
        assert self.driver.wait(timeout=600) == 0, self.said

    def close(self) -> None:
        if self.driver.poll() is None:
            os.killpg(self.driver.pid, signal.SIGKILL)
            self.driver.wait()
        self.close_server()


class Pace:
    """Trainings wait while the journal is ahead of the next kill, however long parts take to be replaced.

    Attributes:
        due: lines of the journal at which the next part is killed; None: no further one.
    """

    def __init__(self, study: Study, hold: Path) -> None:
        self.study, self.hold = study, hold
        self.due: int | None = None
        self._ended = Event()

    @contextmanager
    def kept(self) -> Iterator[None]:
        thread = Thread(target=self._keep)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()
            self.hold.unlink(missing_ok=True)

    def _keep(self) -> None:
        while not self._ended.wait(0.05):
            if self.due is not None and len(events(self.study.out)) >= self.due + AHEAD:
                self.hold.touch()
            else:
                self.hold.unlink(missing_ok=True)


def run(study: Study, kinds: list[str], lines: int, hold: Path) -> None:
    """Run a study to its end, and kill one part each time its journal has a further share of ``lines`` lines."""
    chance = random.Random(11)
    down = False
    pace = Pace(study, hold)
    try:
        with pace.kept():
            for number, kind in enumerate(kinds, 1):
                pace.due = lines * number // (len(kinds) + 2)
                study.wait_for(pace.due)
                time.sleep(chance.uniform(0, 0.4))
                pace.due = lines * (number + 1) // (len(kinds) + 2) if number < len(kinds) else None
                if down and kind == "driver":
                    study.start_server()
                study.kill(kind)
                if down and kind != "driver":
                    study.start_server()
                down = kind == "server"
            if down:
                study.start_server()
            study.finish()
    finally:
        study.close()


def test_ten_random_kills(tmp_path: Path, digits: Path, mlflow_database: bytes) -> None:
    chance, trials = random.Random(5), 12
    kinds = [*KINDS, *KINDS, *chance.sample(KINDS, 2)]
    chance.shuffle(kinds)
    hold = tmp_path / "hold"
    with ray_nodes(2, PRETEND_SECONDS=str(SECONDS), PRETEND_HOLD=str(hold)) as nodes:
        undisturbed = Study(tmp_path / "undisturbed", digits, trials, nodes, mlflow_database)
        run(undisturbed, [], 1, hold)
        disturbed = Study(tmp_path / "disturbed", digits, trials, nodes, mlflow_database)
        run(disturbed, kinds, len(events(undisturbed.out)), hold)
    assert outcome(disturbed.out) == outcome(undisturbed.out)
    assert len((disturbed.out / "kills.txt").read_text().splitlines()) == len(kinds) == 10
    happened = [event["event"] for event in events(disturbed.out)]
    assert happened.count("ended") == trials and happened.count("lost") >= 2
    check_output(disturbed)


def check_output(study: Study) -> None:
    for unwanted in ("Traceback", "class_name", "state-dump", "raylet", "View run"):
        assert unwanted not in study.said


def losses_of(study: Study) -> list[tuple[str, str]]:
    """The trials that were lost and why."""
    return [(event["trial"], event["reason"]) for event in events(study.out) if event["event"] == "lost"]


def test_a_trial_on_a_node_whose_raylet_is_killed_is_run_on_elsewhere(
    tmp_path: Path, digits: Path, mlflow_database: bytes
) -> None:
    with ray_nodes(2, PRETEND_SECONDS="1") as nodes:
        study = Study(tmp_path / "s", digits, 2, nodes, mlflow_database)
        try:
            study.wait_for(4)  # suggested, started, two results
            study.kill("raylet")
            study.finish()
        finally:
            study.close()
    (lost,) = losses_of(study)
    assert lost[0] == "trial-000" and lost[1] in (losses.MACHINE, losses.PROCESS)
    assert [state for _, state, _ in outcome(study.out).values()] == ["COMPLETE", "COMPLETE"]
    _, again = [event["tune"] for event in events(study.out) if event["event"] == "started"][:2]
    known = json.loads((study.out / "s" / "replay" / f"{again}.json").read_text())["0"]
    assert Path(known["checkpoint"]).name == "seed-0.step-4.pt" and len(known["milestones"]) == 2
    check_output(study)


def test_a_trial_that_the_memory_monitor_kills_is_run_on_when_there_is_memory(
    tmp_path: Path, digits: Path, mlflow_database: bytes
) -> None:
    with ray_nodes(0, PRETEND_SECONDS="1") as nodes:
        # Whatever this machine uses is too much for the node.
        short = nodes.add(RAY_memory_usage_threshold="0.01", RAY_memory_monitor_refresh_ms="250")
        study = Study(tmp_path / "s", digits, 2, nodes, mlflow_database)
        try:
            study.wait_for_loss()
            nodes.kill_raylet(short)
            nodes.add()
            study.finish()
        finally:
            study.close()
    assert losses_of(study)[0] == ("trial-000", losses.MEMORY)
    assert [state for _, state, _ in outcome(study.out).values()] == ["COMPLETE", "COMPLETE"]
    check_output(study)
