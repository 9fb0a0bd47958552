"""Locks between processes. The kernel releases them when the process that holds one ends or is killed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from siclip.errors import UserError


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file ``path``; wait while another caller holds it.

    The file may be deleted while it is held, its folder may not. Missing folders are created.

    Raises:
        OSError: the lock file cannot be created.
    """
    with _lock(path):
        yield


def claim(path: Path, held: str) -> FileLock:
    """Take the lock file ``path`` without waiting; ``release()`` it from any thread, or end the process.

    Raises:
        UserError: with the message ``held``, if another process or another part of this one has it.
        OSError: the lock file cannot be created.
    """
    lock = _lock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise UserError(held) from None
    return lock


def _lock(path: Path) -> FileLock:
    # Not thread-local: a spool is opened in one thread and closed in another.
    # No soft fallback: where a file system has no flock, the fallback's marker file would survive a killed process.
    return FileLock(path, thread_local=False, fallback_to_soft=False)
