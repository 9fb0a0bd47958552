"""Ctrl-C: the first one stops the work at a point from which it can be resumed, the second ends the process."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

INTERRUPTED = 128 + signal.SIGINT
"""The exit code, as shells report a process that SIGINT ended."""

_graceful: list[Callable[[], None]] = []


class Interrupted(SystemExit):
    """The process ends because of Ctrl-C, and the user has been told how to resume."""

    def __init__(self) -> None:
        super().__init__(INTERRUPTED)


def handle_interrupts() -> None:
    """Handle SIGINT in this process; call it in the main thread, before any work starts."""
    # Ray Tune would replace our handler, and a second Ctrl-C would not be recognised; it takes SIGUSR1 instead.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    signal.signal(signal.SIGINT, _first)


@contextmanager
def stopping_with(stop: Callable[[], None]) -> Iterator[None]:
    """During the block the first Ctrl-C calls ``stop`` and raises no KeyboardInterrupt."""
    _graceful.append(stop)
    try:
        yield
    finally:
        _graceful.remove(stop)


def _first(number: int, frame: Any) -> None:
    signal.signal(signal.SIGINT, _second)
    if not _graceful:
        raise KeyboardInterrupt
    _graceful[-1]()


def _second(number: int, frame: Any) -> NoReturn:
    if sys.stdout.isatty():
        os.write(sys.stdout.fileno(), b"\x1b[?25h\n")  # progress bars hide the cursor
    # No clean-up: Ray's processes of this machine end with their parent, and everything on disk is resumable.
    os._exit(INTERRUPTED)
