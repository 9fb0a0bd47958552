"""A Ray head with token authentication, as `make head` starts one."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CPUS = re.findall(r"--num-cpus=\d+", (ROOT / "Makefile").read_text())[0]  # of `make head`, as in the README
RAY = [sys.executable, "-m", "ray.scripts.scripts"]


def free_ports(count: int) -> list[int]:
    """Free ports of the loopback interface; each stays bound until all are found, so they differ."""
    with contextlib.ExitStack() as bound:
        probes = [bound.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


@contextlib.contextmanager
def ray_head(secret: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Run a head on its own ports and in its own temporary folder. Yields the environment that reaches it.

    Args:
        secret: variables that the head, and so every job, has in its environment.
    """
    scripts = Path(sys.executable).parent
    port, dashboard, client, agent = free_ports(4)
    env = {
        **os.environ,
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        **secret,
    }
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        ports = {"port": port, "dashboard-port": dashboard}
        ports |= {"ray-client-server-port": client, "dashboard-agent-listen-port": agent}
        options = [f"--{name}={number}" for name, number in ports.items()]
        command = [*RAY, "start", "--head", "--block", CPUS, f"--temp-dir={folder}", *options]
        with (Path(folder) / "head.log").open("w") as log:
            head = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log, start_new_session=True)
        try:
            wait_for(f"http://127.0.0.1:{dashboard}/api/version", head, Path(folder) / "head.log")
            yield {**env, "RAY_ADDRESS": f"http://127.0.0.1:{dashboard}", "HEAD_FOLDER": folder}
        finally:
            for process in session_of(head.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            head.wait()


def session_of(leader: int) -> list[int]:
    """The processes of a session. Not found by name, because Ray's agents change their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(ProcessLookupError):
                if os.getsid(int(entry.name)) == leader:
                    found.append(int(entry.name))
    return found


def wait_for(url: str, head: subprocess.Popen, log: Path) -> None:
    """Wait until the head answers; fail with its log if it ends or does not answer within minutes."""
    for _ in range(120):
        assert head.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except urllib.error.HTTPError:
            return  # it answers that the token is missing
        except OSError:
            time.sleep(1)
    raise AssertionError(log.read_text())
