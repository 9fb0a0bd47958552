"""What lies at the place of a source, and its files' bytes."""

from __future__ import annotations

import posixpath
from typing import Any
from urllib.parse import urlsplit

from pyarrow import fs as pafs

from siclip.errors import UserError
from siclip_platform.storage import AnyPath, RemotePath, as_path, asking, keys_in_front, within


def files(where: AnyPath) -> list[tuple[str, int]]:
    """(path relative to this folder, bytes) of all files below it, sorted; a file gives its own name.

    Hidden files and what lies in hidden folders is left out.

    Raises:
        UserError: there is nothing at the place, or its store does not answer.
    """
    filesystem, path = within(where)
    with asking(where):
        info = filesystem.get_file_info(path)
        if info.type == pafs.FileType.File:
            return [(posixpath.basename(info.path), info.size or 0)]
        if info.type != pafs.FileType.Directory:
            raise UserError(f"there is nothing at {_plain(where)}: name a file or a folder that exists")
        found = filesystem.get_file_info(pafs.FileSelector(info.path, recursive=True))
    base = info.path.rstrip("/") + "/"
    names = [(item.path.removeprefix(base), item.size or 0) for item in found if item.type == pafs.FileType.File]
    return sorted((name, size) for name, size in names if not _hidden(name))


def folder_of(where: AnyPath) -> AnyPath:
    """The place that the names of `files` are relative to."""
    return where.parent if where.is_file() else where


def read_bytes(filesystem: Any, path: str) -> bytes:
    """A file whole."""
    with filesystem.open_input_stream(path) as file:
        return bytes(file.read())


def read_uri(uri: str) -> bytes:
    """The file at a URI that a row names; it may be signed.

    Raises:
        UserError: it holds keys, or its store does not answer.
    """
    where = as_path(uri, signed=True)
    with asking(where):
        return read_bytes(*within(where))


def _plain(where: AnyPath) -> str:
    return where.plain if isinstance(where, RemotePath) else str(where)


def _hidden(name: str) -> bool:
    *folders, file = name.split("/")
    return file.startswith(".") or any(part.startswith((".", "_")) for part in folders)


def without_credentials(uri: str) -> str:
    """A URI without its user, password or key, and without its query: what may be written down."""
    scheme, mark, rest = uri.partition("://")
    if not mark:
        return uri
    host, slash, path = rest.partition("?")[0].partition("/")
    clean = f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"
    return f"{scheme}://…" if keys_in_front(urlsplit(clean)) else clean
