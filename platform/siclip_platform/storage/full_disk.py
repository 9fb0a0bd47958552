"""A disk that is full for a moment is waited for, as a stopped server is."""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
import time
from collections.abc import Callable
from typing import TypeVar

from siclip.errors import UserError

SECONDS = 300.0  # within this time other programs usually free space; longer waits need a person
PAUSE = 0.5
FULL = os.strerror(errno.ENOSPC)
T = TypeVar("T")
log = logging.getLogger(__name__)


def when_there_is_space(write: Callable[[], T], where: object) -> T:
    """Return ``write()``; while it fails because the disk is full, try again.

    Args:
        write: changes everything or, if it raises, nothing.
        where: the file that is written, for messages.

    Raises:
        UserError: the disk stayed full for `SECONDS`.
    """
    until: float | None = None
    while True:
        try:
            return write()
        except Exception as error:
            if not is_full(error):
                raise
            if until is None:
                until = time.monotonic() + SECONDS
                log.warning("the disk of %s is full: waiting up to %g s for space", where, SECONDS)
            if time.monotonic() > until:
                raise UserError(f"{where}: the disk is full; free space on it, then resume or start again") from None
        time.sleep(PAUSE)


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or one that it was raised from, says that a disk is full."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode == sqlite3.SQLITE_FULL:
            return True
        # Errors that crossed processes, or come from a library in C++, keep only the text.
        if FULL in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
