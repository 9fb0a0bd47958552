"""Files between places: copied, fetched, and whether a place can be written to."""

from __future__ import annotations

import atexit
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, TypeVar

from pyarrow import fs as pafs

from siclip_platform.errors import UserError
from siclip_platform.storage.place import Place, RemotePath, Stat, asking, place

READERS = 16
MARK = ".siclip-write-check"
T = TypeVar("T")
R = TypeVar("R")


def check_writable(folder: Place, option: str) -> None:
    """Put a small file there and remove it, before anything is computed.

    Raises:
        UserError: it cannot be written, with what to do; ``option`` is what named the place.
    """
    try:
        if isinstance(folder, Path):
            folder.mkdir(parents=True, exist_ok=True)
        (folder / MARK).write_bytes(b"")
        (folder / MARK).unlink()
    except OSError as error:
        raise UserError(f"{option} {folder} cannot be written: {error.strerror or error}; name another") from None


def copy_file(source: Place, target: Place) -> None:
    """Whole or not at all, from any place to any other.

    Raises:
        UserError: a store does not answer or refuses.
    """
    (from_fs, from_path), (to_fs, to_path) = _within(source), _within(target)
    part = f"{to_path}.{os.getpid()}.tmp" if isinstance(target, Path) else to_path
    remote = next((side for side in (target, source) if isinstance(side, RemotePath)), None)
    with asking(remote) if remote else nullcontext():
        pafs.copy_files(from_path, part, source_filesystem=from_fs, destination_filesystem=to_fs)
    if isinstance(target, Path):
        Path(part).replace(target)


def _within(where: Place) -> tuple[Any, str]:
    if isinstance(where, RemotePath):
        return where.filesystem, where.path
    return pafs.LocalFileSystem(), str(where.absolute())


@contextmanager
def fetched(named: str | Place) -> Iterator[Path]:
    """A file as one of this machine: itself, or a copy of what lies at a URI that this process keeps while it runs.

    A `UserError` of the block names the URI.

    Raises:
        UserError: there is no such file, or the store does not answer.
    """
    where = place(named)
    if isinstance(where, Path):
        yield where
        return
    try:
        found = where.stat()
    except FileNotFoundError:
        raise UserError(f"there is no file {where}: correct the URI") from None
    local = _copy(where, found)
    try:
        yield local
    except UserError as error:
        raise UserError(str(error).replace(str(local), str(where))) from None


@lru_cache(maxsize=32)
def _copy(where: RemotePath, found: Stat) -> Path:
    name = hashlib.sha256(f"{where} {found}".encode()).hexdigest()[:16]
    local = _folder() / f"{name}{where.suffix}"
    copy_file(where, local)
    return local


@cache
def _folder() -> Path:
    folder = tempfile.TemporaryDirectory(prefix="siclip-fetched-")
    atexit.register(folder.cleanup)
    return Path(folder.name)


def in_threads(work: Callable[[T], R], items: Iterable[T], remote: bool) -> Iterable[R]:
    """``work`` on every item, in order; with ``remote`` many at a time, for each waits for the network."""
    if not remote:
        return map(work, items)
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(work, items))
