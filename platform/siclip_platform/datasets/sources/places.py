"""Local paths and URIs behind one interface, that of `pyarrow.fs`.

``file://``, ``s3://``, ``gs://``, ``abfs://`` and ``hdfs://`` are pyarrow's own; every other scheme is looked up in
fsspec. Credentials and endpoints come from where these libraries look for them.
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs as pafs

from siclip_platform.errors import UserError

READING = (OSError, pa.ArrowException, ValueError)
"""What reading a place raises when there is nothing, or not what was expected."""


@dataclass(frozen=True)
class Place:
    """A file or folder on a filesystem; ``root`` is the URI or the path as it was given."""

    root: str

    @property
    def filesystem(self) -> Any:
        return _open(self.root)[0]

    @property
    def path(self) -> str:
        return str(_open(self.root)[1])

    def files(self) -> list[tuple[str, int]]:
        """(path relative to this folder, bytes) of all files below it, sorted; a file gives its own name.

        Hidden files and what lies in hidden folders is left out.

        Raises:
            UserError: there is nothing at the place.
        """
        info = self._info()
        if info.type == pafs.FileType.File:
            return [(posixpath.basename(info.path), info.size or 0)]
        found = self.filesystem.get_file_info(pafs.FileSelector(info.path, recursive=True))
        base = info.path.rstrip("/") + "/"
        names = [(item.path.removeprefix(base), item.size or 0) for item in found if item.type == pafs.FileType.File]
        return sorted((name, size) for name, size in names if not _hidden(name))

    @property
    def is_file(self) -> bool:
        return bool(self._info().type == pafs.FileType.File)

    def folder(self) -> str:
        """The path that the names of `files` are relative to."""
        return posixpath.dirname(self.path) if self.is_file else self.path

    def _info(self) -> Any:
        try:
            info = self.filesystem.get_file_info(self.path)
        except READING as error:
            raise UserError(f"{without_credentials(self.root)} cannot be read: {error}") from None
        if info.type not in (pafs.FileType.File, pafs.FileType.Directory):
            raise UserError(
                f"there is nothing at {without_credentials(self.root)}: name a file or a folder that exists"
            )
        return info


def read_bytes(filesystem: Any, path: str) -> bytes:
    """A file whole."""
    with filesystem.open_input_stream(path) as file:
        return bytes(file.read())


def _hidden(name: str) -> bool:
    *folders, file = name.split("/")
    return file.startswith(".") or any(part.startswith((".", "_")) for part in folders)


def without_credentials(uri: str) -> str:
    """A URI without its user, password or key, and without its query: what may be written down."""
    scheme, mark, rest = uri.partition("://")
    if not mark:
        return uri
    host, slash, path = rest.partition("?")[0].partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


@cache
def _open(root: str) -> tuple[Any, str]:
    if "://" not in root:
        return pafs.LocalFileSystem(), Path(root).absolute().as_posix()
    try:
        filesystem, path = pafs.FileSystem.from_uri(root)
        return filesystem, path
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return _from_fsspec(root)
    except READING as error:
        raise UserError(f"{without_credentials(root)} cannot be opened: {error}") from None


def _from_fsspec(root: str) -> tuple[Any, str]:
    import fsspec

    try:
        filesystem, path = fsspec.core.url_to_fs(root)
    except (ImportError, *READING) as error:
        raise UserError(
            f"{without_credentials(root)} cannot be opened: {error}. Install what fsspec needs, or copy it here"
        ) from None
    return pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)), path
