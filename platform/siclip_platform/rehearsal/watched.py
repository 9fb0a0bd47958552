"""Processes of the stages: their time, their memory, and what they said when they failed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

WATCH_SECONDS = 0.1
ERROR = "error: "
"""How a command's message about bad input begins."""
LONGEST_TAIL = 64 * 1024


@dataclass(frozen=True)
class Watched:
    """A process that has ended.

    Attributes:
        code: its exit code; negative: the signal that ended it.
        seconds: how long it ran.
        memory_bytes: peak of the resident memory of the process and its descendants, Ray's included. Pages that
            processes share count once for each.
        killed: whether it was killed because ``until`` said so.
        log: what it printed.
    """

    code: int
    seconds: float
    memory_bytes: int
    killed: bool
    log: Path

    @property
    def message(self) -> str:
        """Why it failed, for people."""
        text = _tail(self.log)
        start = text.rfind(f"\n{ERROR}")
        if start >= 0:
            return text[start + 1 + len(ERROR) :].strip()
        if self.code == -9 or "outofmemory" in text.replace(" ", "").lower():
            return (
                f"out of memory: this machine's or the card's; the process held {self.memory_bytes / 2**30:.1f} GiB. "
                "Lower training.micro_batch_size or data.concurrent_reads, or use a larger machine"
            )
        lines = text.strip().splitlines()
        return f"it ended with exit code {self.code}: {lines[-1] if lines else 'without a message'}"


def watch(words: Sequence[str], log: Path, until: Callable[[], bool] = lambda: False) -> Watched:
    """Run ``python WORDS`` to its end, or kill it with all its descendants once ``until`` is true.

    However this call ends, none of these processes is left.

    Args:
        words: of the command line, after the interpreter.
        log: receives both outputs.
        until: asked every tenth of a second; the kill is SIGKILL, as at a power failure.
    """
    started, peak, killed = time.monotonic(), 0, False
    # The stages start a cluster of their own: the numbers are those of this machine.
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with log.open("wb") as output:
        child = subprocess.Popen(
            [sys.executable, *words], stdout=output, stderr=output, start_new_session=True, env=environment
        )
        process = psutil.Process(child.pid)
        family = [process]
        try:
            while child.poll() is None:
                family = _family(process)
                peak = max(peak, sum(map(_resident, family)))
                if until():
                    killed = True
                    break
                time.sleep(WATCH_SECONDS)
        finally:
            _kill([*_family(process), *family])
            code = child.wait()
    return Watched(code, time.monotonic() - started, peak, killed, log)


def _family(process: psutil.Process) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return [process, *process.children(recursive=True)]
    return []


def _resident(process: psutil.Process) -> int:
    with suppress(psutil.Error):
        return int(process.memory_info().rss)
    return 0


def _kill(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        # psutil compares the start time: another process that has the id by now is not killed
        with suppress(psutil.Error):
            process.kill()


def _tail(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - LONGEST_TAIL))
        return "\n" + file.read().decode(errors="replace")
