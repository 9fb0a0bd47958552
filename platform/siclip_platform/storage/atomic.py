"""Local files that are written completely or not at all."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

TEMPORARY = ".*.tmp"
"""Glob pattern of the files that `replacing` leaves in a folder when its process is killed."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary file name in the same folder and rename it to ``path`` if the block succeeds.

    The block must create the file. Its content and the folder's entry are flushed to disk. If the block raises,
    ``path`` is unchanged and the temporary file is removed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        # Flushed before the rename: after a power cut the new name could otherwise exist without its content.
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)


def write_text_atomically(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8 to ``path`` through `replacing`; the folder must exist."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def remove_abandoned(folder: Path, *, prefix: str = "", deep: bool = True) -> int:
    """Remove temporary files and folders that killed processes of this machine have left; return their bytes.

    They are those named ``….PID.tmp``, as `replacing`, checkpoints and Ray Train's workers name them. What a running
    process has is kept.

    Args:
        folder: it need not exist.
        prefix: of the names.
        deep: also those in the folders within.
    """
    freed = 0
    for path in list(folder.rglob(f"{prefix}*.tmp") if deep else folder.glob(f"{prefix}*.tmp")):
        process = re.search(r"\.(\d{1,9})\.tmp$", path.name)
        if process is None or psutil.pid_exists(int(process[1])):
            continue
        files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
        freed += sum(file.stat().st_size for file in files)
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return freed
