"""Files between places: copied, fetched, and whether a place can be written to."""

from __future__ import annotations

import atexit
import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from pyarrow import fs as pafs

from siclip.errors import UserError
from siclip_platform.storage.atomic import replacing
from siclip_platform.storage.path import AnyPath, RemotePath, Stat, as_path, asking

READERS = 16
MARK = ".siclip-write-check"
T = TypeVar("T")
R = TypeVar("R")


def check_writable(folder: AnyPath, option: str) -> None:
    """Put a small file there and remove it, before anything is computed.

    Raises:
        UserError: it cannot be written, with what to do; ``option`` is what named the place.
    """
    try:
        if isinstance(folder, Path):
            folder.mkdir(parents=True, exist_ok=True)
        mark = folder / f"{MARK}-{uuid4().hex}"  # its own: another command may look at the same time
        mark.write_bytes(b"")
        mark.unlink()
    except OSError as error:
        raise UserError(f"{option} {folder} cannot be written: {error.strerror or error}; name another") from None


def copy_file(source: AnyPath, target: AnyPath) -> None:
    """Whole or not at all, from any place to any other.

    Raises:
        UserError: a store does not answer or refuses.
    """
    (from_fs, from_path), (to_fs, to_path) = within(source), within(target)
    if isinstance(target, Path):
        with replacing(target) as temporary, asking(source):
            pafs.copy_files(from_path, str(temporary), source_filesystem=from_fs, destination_filesystem=to_fs)
        return
    with asking(target):
        pafs.copy_files(from_path, to_path, source_filesystem=from_fs, destination_filesystem=to_fs)


def within(where: AnyPath) -> tuple[Any, str]:
    """pyarrow's filesystem of a place, and its path there."""
    if isinstance(where, RemotePath):
        return where.filesystem, where.path
    return pafs.LocalFileSystem(), str(where.absolute())


@contextmanager
def fetched(named: str | AnyPath) -> Iterator[Path]:
    """A file as one of this machine: itself, or a copy of what lies at a URI that this process keeps while it runs.

    A `UserError` of the block names the URI.

    Raises:
        UserError: there is no such file, or the store does not answer.
    """
    where = as_path(named)
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


def in_threads(work: Callable[[T], R], items: Iterable[T], where: AnyPath) -> list[R]:
    """``work`` on every item, in order; many at a time where ``where`` is in a store, for each waits for it."""
    if isinstance(where, Path):
        return [work(item) for item in items]
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(work, items))
