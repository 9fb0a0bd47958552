"""A command as a user runs it, stopped with Ctrl-C once it has come to a stage."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

BEGIN_SECONDS = 400  # of a busy machine; most of it is Python's imports
STOP_SECONDS = 30  # a training that is not interrupted takes minutes


@dataclass(frozen=True)
class Stopped:
    """A command that Ctrl-C has ended."""

    code: int
    output: str
    seconds: float
    survivors: list[str]

    @property
    def resume(self) -> list[str]:
        """The words of the command that the output names, after the program's name."""
        (command,) = re.findall(r"to resume: (.*)", self.output)
        program, *words = shlex.split(command)
        assert program == "siclip-platform"
        return words


def program(words: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "siclip_platform", *words]


def stop(
    words: Sequence[str], log: Path, begun: Callable[[], bool], times: int = 1, by: signal.Signals = signal.SIGINT
) -> Stopped:
    """Start a command, send it a signal once ``begun`` is true, and wait for its end.

    Args:
        words: the command, without the program's name.
        log: where its output goes.
        begun: whether the stage has begun in which the command is stopped.
        times: how often the signal is sent, half a second apart.
        by: SIGINT goes to every process of the group, as a terminal sends it; SIGTERM to the command alone.

    Raises:
        AssertionError: the command ends before, does not begin the stage, or does not stop.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(program(words), stdout=output, stderr=output, start_new_session=True)
    try:
        until = time.monotonic() + BEGIN_SECONDS
        while not begun():
            assert process.poll() is None and time.monotonic() < until, log.read_text()
            time.sleep(0.05)
        children = psutil.Process(process.pid).children(recursive=True)
        started = time.monotonic()
        for index in range(times):
            time.sleep(0.5 * bool(index))
            (os.killpg if by == signal.SIGINT else os.kill)(process.pid, by)
        process.wait(STOP_SECONDS)
        seconds = time.monotonic() - started
        _, alive = psutil.wait_procs(children, timeout=10)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return Stopped(process.returncode, log.read_text(), seconds, [child.name() for child in alive])


def run(words: Sequence[str], log: Path) -> str:
    """Run a command to its end; its output."""
    with log.open("wb") as output:
        code = subprocess.run(program(words), stdout=output, stderr=subprocess.STDOUT, timeout=900, check=False)
    assert code.returncode == 0, log.read_text()
    return log.read_text()
