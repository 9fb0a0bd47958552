"""A full disk ends a command with one sentence, whatever wrote and wherever."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable

import pytest

from siclip_platform.cli.guard import guarded
from siclip_platform.storage.full_disk import is_full

FULL = os.strerror(errno.ENOSPC)


def named() -> None:
    raise OSError(errno.ENOSPC, FULL, "/data/shard.parquet")


def arrow() -> None:
    raise OSError(errno.ENOSPC, "Error writing bytes to file")


def wrapped() -> None:
    try:
        named()
    except OSError as error:
        raise RuntimeError("training best failed") from error


def text_only() -> None:
    raise RuntimeError(f"ray::task() failed: [Errno 28] {FULL}")


def in_mlflow() -> None:
    # As SQLite reports it; SQLAlchemy and MLflow raise their own errors from it.
    database = sqlite3.connect(":memory:")
    database.execute("PRAGMA max_page_count = 2")
    database.execute("CREATE TABLE t (x)")
    try:
        database.execute("INSERT INTO t VALUES (zeroblob(100000))")
    except sqlite3.OperationalError as error:
        raise RuntimeError("the run could not be written") from error


@pytest.mark.parametrize("write", [named, arrow, wrapped, text_only, in_mlflow])
def test_it_is_one_sentence(write: Callable[[], None], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        guarded(write)
    message = " ".join(capsys.readouterr().err.split())
    assert ended.value.code == 2
    where = "/data/shard.parquet" if write is named else "while a file was written"
    assert (
        message
        == f"error: {where}: the disk is full; free space on it, then resume or repeat: what is finished is kept"
    )


def test_other_errors_keep_their_traceback() -> None:
    assert not is_full(OSError(errno.EACCES, "no"))
    with pytest.raises(ZeroDivisionError):
        guarded(lambda: 1 // 0)
