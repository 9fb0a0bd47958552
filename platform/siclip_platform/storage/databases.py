"""SQLite databases that exist whole or not at all."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from siclip_platform.storage.atomic import replacing
from siclip_platform.storage.locking import locked

MAKING = ".making"


def create_whole(path: Path, make: Callable[[Path], None], unusable: Callable[[Path], bool]) -> None:
    """Create a database unless there is one, or replace one that a kill left half-made.

    One process creates it; others wait. It gets its name when it is complete.

    Args:
        path: the database; its folder must exist.
        make: creates a database of the given name, which its caller may delete.
        unusable: whether an existing database is half-made and holds nothing. It may raise an error to refuse one.

    Raises:
        OSError: the folder cannot be written.
    """
    if path.exists() and not unusable(path):
        return
    with locked(path.with_name(f".{path.name}.lock")):
        if path.exists() and not unusable(path):
            return
        # Only the holder of the lock makes these, so what is left is of a process that was killed.
        for left in path.parent.glob(f".{path.name}.*{MAKING}"):
            shutil.rmtree(left, ignore_errors=True)
        for left in path.parent.glob(f".{path.name}.*.tmp"):
            left.unlink(missing_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.", suffix=MAKING) as folder:
            made = Path(folder) / path.name
            make(made)
            with replacing(path) as temporary:
                _copy(made, temporary)
        # A journal beside a half-made database would be played back into the new one.
        for suffix in ("-journal", "-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)


def _copy(source: Path, target: Path) -> None:
    """Copy with SQLite itself: its connections to the source may be open."""
    with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(target)) as new:
        old.backup(new)


def tables(path: Path) -> dict[str, bool] | None:
    """The tables of a database, each with whether it has rows; None if the file is not a readable database."""
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=20)) as data:
            names = [name for (name,) in data.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            return {name: bool(data.execute(f'SELECT 1 FROM "{name}" LIMIT 1').fetchone()) for name in names}
    except sqlite3.Error:
        return None


def damage(path: Path) -> str | None:
    """What is wrong with the content of a database; None if nothing is, or if there is no such file."""
    if not path.is_file():
        return None
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=20)) as data:
            found = str(data.execute("PRAGMA quick_check(1)").fetchone()[0])
    except sqlite3.OperationalError:  # it cannot be read now, for example because a killed process was writing to it
        return None
    except sqlite3.DatabaseError as error:
        return str(error)
    return None if found == "ok" else found.splitlines()[-1]
