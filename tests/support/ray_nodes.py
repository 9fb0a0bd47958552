"""A Ray cluster of several nodes on this machine, whose nodes and workers a test kills."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from ray_head import ROOT, free_ports, session_of

# Each raylet would give its workers the same ports from its range, also those of other nodes on this machine.
OWN_PORTS = ("--min-worker-port=0", "--max-worker-port=0")
RAY = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *OWN_PORTS]
START_SECONDS = 180
NODE_CPUS = 3  # one node is enough for a study, so that another may be missing


class Nodes:
    """A head without CPUs, which is never killed, and worker nodes.

    Attributes:
        environment: of processes that join the cluster.
    """

    def __init__(self, folder: Path, **environment: str) -> None:
        """Start the head.

        Args:
            folder: of Ray's session, with a short path.
            environment: variables of every worker.
        """
        port, client, agent, dashboard = free_ports(4)
        self.environment = {
            **os.environ,
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'platform'}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_ADDRESS": f"127.0.0.1:{port}",
            **environment,
        }
        self.log = (folder / "nodes.log").open("a")
        self._processes: list[subprocess.Popen] = []
        ports = {"port": port, "ray-client-server-port": client, "dashboard-agent-listen-port": agent}
        ports |= {"dashboard-port": dashboard}
        options = [f"--{name}={number}" for name, number in ports.items()]
        self._start("--head", "--num-cpus=0", f"--temp-dir={folder}", *options)
        self.workers: list[subprocess.Popen] = []

    def _start(self, *options: str) -> subprocess.Popen:
        # The head's address is an option of its own, and Ray refuses both.
        environment = {name: value for name, value in self.environment.items() if name != "RAY_ADDRESS"}
        process = subprocess.Popen(
            [*RAY, *options], cwd=ROOT, env=environment, stdout=self.log, stderr=self.log, start_new_session=True
        )
        self._processes.append(process)
        self._raylet(process)
        return process

    def add(self, **environment: str) -> subprocess.Popen:
        """Start a worker node, and wait for its raylet."""
        before = self.environment
        self.environment = {**before, **environment}
        try:
            node = self._start(f"--address={before['RAY_ADDRESS']}", f"--num-cpus={NODE_CPUS}")
        finally:
            self.environment = before
        self.workers.append(node)
        return node

    def _raylet(self, node: subprocess.Popen) -> psutil.Process:
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            assert node.poll() is None, Path(self.log.name).read_text()
            for process in psutil.Process(node.pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    if process.name() == "raylet":
                        return process
            time.sleep(0.1)
        raise AssertionError(Path(self.log.name).read_text())

    def kill_raylet(self, node: subprocess.Popen) -> None:
        """Kill a worker node's raylet; its workers end with it."""
        self.workers.remove(node)
        self._raylet(node).kill()

    def busy(self) -> list[tuple[subprocess.Popen, psutil.Process]]:
        """The processes that run actors, each with its node."""
        found = []
        for node in self.workers:
            with suppress(psutil.NoSuchProcess):
                for process in psutil.Process(node.pid).children(recursive=True):
                    with suppress(psutil.NoSuchProcess, IndexError):
                        title = process.cmdline()[0]
                        # A node ends with its agents, which have such titles too.
                        if title.startswith("ray::") and not title.endswith("Agent") and "IDLE" not in title:
                            found.append((node, process))
        return found

    def wait_for_busy(self) -> tuple[subprocess.Popen, psutil.Process]:
        """The first of `busy`, once there is one."""
        until = time.monotonic() + START_SECONDS
        while not (found := self.busy()):
            assert time.monotonic() < until, "no worker"
            time.sleep(0.05)
        return found[0]

    def close(self) -> None:
        for node in self._processes:
            for process in session_of(node.pid):
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            node.wait()
        self.log.close()


@contextmanager
def ray_nodes(count: int, **environment: str) -> Iterator[Nodes]:
    """A head and ``count`` worker nodes, killed at the end."""
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        nodes = Nodes(Path(folder), **environment)
        try:
            for _ in range(count):
                nodes.add()
            yield nodes
        finally:
            nodes.close()
