"""Ctrl-C and SIGTERM: the first one stops the work at a point from which it can be resumed, the second ends the
process."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import psutil

INTERRUPTED = 128 + signal.SIGINT
"""The exit code after Ctrl-C, as shells report a process that SIGINT ended."""
TERMINATED = 128 + signal.SIGTERM
"""The exit code after SIGTERM, which schedulers and containers send."""
UNINTERRUPTIBLE = "uninterruptible"
"""The name of threads that may still run when the process has cleaned up after Ctrl-C."""


class Interrupted(SystemExit):
    """The process ends because of Ctrl-C or SIGTERM, and the user was told how to resume."""

    def __init__(self) -> None:
        super().__init__(exit_code())


class _Handler:
    """The process's handler of SIGINT and SIGTERM."""

    def __init__(self) -> None:
        self.stops: list[Callable[[], None]] = []
        self.called = False
        self.signal = signal.SIGINT
        self.process: int | None = None

    def __call__(self, number: int, frame: Any) -> None:
        if os.getpid() != self.process and number == signal.SIGTERM:
            # A forked child has nothing to resume, and whoever sent the signal waits for its end.
            os._exit(TERMINATED)
        self.signal = self.signal if self.called else signal.Signals(number)
        # One handler for both: Ray Tune sets the handler that it found again after the first.
        if self.called:
            _exit_at_once()
        self.called = True
        if not self.stops:
            raise KeyboardInterrupt
        self.stops[-1]()


_handler = _Handler()


def handle_interrupts() -> None:
    """Handle SIGINT and SIGTERM in this process; call it in the main thread, before any work starts."""
    # Ray Tune would put its own handler in front, and would not report the first Ctrl-C.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    _handler.process = os.getpid()
    signal.signal(signal.SIGINT, _handler)
    signal.signal(signal.SIGTERM, _handler)


def handles_interrupts() -> bool:
    """Whether `handle_interrupts` was called in this process."""
    return _handler.process == os.getpid()


def exit_code() -> int:
    """The exit code of this process once it was stopped."""
    return 128 + _handler.signal


def stopped_by() -> str:
    """What stopped this process, for people."""
    return "Ctrl-C" if _handler.signal == signal.SIGINT else _handler.signal.name


@contextmanager
def stopping_with(stop: Callable[[], None]) -> Iterator[None]:
    """During the block the first Ctrl-C or SIGTERM only calls ``stop`` in the main thread."""
    _handler.stops.append(stop)
    try:
        yield
    finally:
        _handler.stops.remove(stop)


def leave() -> NoReturn:
    """End the process after it has cleaned up because of Ctrl-C or SIGTERM."""
    if any(thread.name == UNINTERRUPTIBLE for thread in threading.enumerate()):
        # Stopped inside torch or Ray, at the normal end of the process, such a thread would abort it.
        sys.stdout.flush()
        sys.stderr.flush()
        _exit_at_once()
    raise Interrupted


def _exit_at_once() -> NoReturn:
    if sys.stdout.isatty():
        os.write(sys.stdout.fileno(), b"\x1b[?25h\n")  # progress bars hide the cursor
    # Ray's agents would outlive its raylet by half a minute. What is on disk is resumable.
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    os._exit(exit_code())
