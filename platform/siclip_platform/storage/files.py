"""Operations on files at any path: copy, fetch, read, test for write access."""

from __future__ import annotations

import atexit
import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, lru_cache
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

from pyarrow import fs as pafs

from siclip.errors import UserError
from siclip_platform.storage.atomic import replacing
from siclip_platform.storage.path import AnyPath, RemotePath, Stat, as_path, filesystem_of, store_errors

READERS = 16
WRITE_CHECK = ".siclip-write-check"
T = TypeVar("T")
R = TypeVar("R")


def check_writable(folder: AnyPath, option: str) -> None:
    """Create and delete a small file in the folder, so that a missing permission shows before anything is computed.

    Args:
        folder: created if it is local and missing.
        option: the option that named the folder, for the message.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        if isinstance(folder, Path):
            folder.mkdir(parents=True, exist_ok=True)
        # A unique name: another command may check the same folder at the same time.
        mark = folder / f"{WRITE_CHECK}-{uuid4().hex}"
        mark.write_bytes(b"")
        mark.unlink()
    except OSError as error:
        raise UserError(f"{option} {folder} cannot be written: {error.strerror or error}; name another") from None


def copy_file(source: AnyPath, target: AnyPath) -> None:
    """Copy a file between any two paths, completely or not at all.

    Raises:
        UserError: a store does not answer or refuses.
    """
    (from_fs, from_path), (to_fs, to_path) = filesystem_of(source), filesystem_of(target)
    if isinstance(target, Path):
        with replacing(target) as temporary, store_errors(source):
            temporary_path = str(temporary.absolute())
            pafs.copy_files(from_path, temporary_path, source_filesystem=from_fs, destination_filesystem=to_fs)
        return
    with store_errors(target):
        pafs.copy_files(from_path, to_path, source_filesystem=from_fs, destination_filesystem=to_fs)


@contextmanager
def local_copy(named: str | AnyPath) -> Iterator[Path]:
    """Yield a local file: ``named`` itself, or a copy of the file at a URI that is kept until this process ends.

    A `UserError` that the block raises names the URI in place of the copy.

    Raises:
        UserError: there is no such file, or the store does not answer.
    """
    path = as_path(named)
    if isinstance(path, Path):
        yield path
        return
    try:
        found = path.stat()
    except FileNotFoundError:
        raise UserError(f"there is no file {path}: correct the URI") from None
    local = _download(path, found)
    try:
        yield local
    except UserError as error:
        raise UserError(str(error).replace(str(local), str(path))) from None


@lru_cache(maxsize=32)
def _download(path: RemotePath, found: Stat) -> Path:
    """``found`` is part of the cache key: a file that changes in the store is downloaded again."""
    name = hashlib.sha256(f"{path} {found}".encode()).hexdigest()[:16]
    local = _folder() / f"{name}{path.suffix}"
    copy_file(path, local)
    return local


@cache
def _folder() -> Path:
    folder = tempfile.TemporaryDirectory(prefix="siclip-fetched-")
    atexit.register(folder.cleanup)
    return Path(folder.name)


def in_threads(work: Callable[[T], R], items: Iterable[T], path: AnyPath) -> list[R]:
    """Return ``work`` of every item, in order; in threads if ``path`` is in a store, whose latency dominates."""
    if isinstance(path, Path):
        return [work(item) for item in items]
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(work, items))
