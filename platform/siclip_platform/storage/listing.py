"""The files below a folder at any path."""

from __future__ import annotations

import posixpath

from pyarrow import fs as pafs

from siclip.errors import UserError
from siclip_platform.storage.path import AnyPath, RemotePath, filesystem_of, store_errors


def list_files(path: AnyPath) -> list[tuple[str, int]]:
    """Return (path relative to `base_folder`, bytes) of every file below a folder, sorted; a file lists itself.

    Hidden files, and files in folders whose names begin with "." or "_", are omitted.

    Raises:
        UserError: the path does not exist, or its store does not answer.
    """
    filesystem, root = filesystem_of(path)
    with store_errors(path):
        info = filesystem.get_file_info(root)
        if info.type == pafs.FileType.File:
            return [(posixpath.basename(info.path), info.size or 0)]
        if info.type != pafs.FileType.Directory:
            shown = path.plain if isinstance(path, RemotePath) else str(path)
            raise UserError(f"{shown} does not exist: name an existing file or folder")
        found = filesystem.get_file_info(pafs.FileSelector(info.path, recursive=True))
    base = info.path.rstrip("/") + "/"
    names = [(item.path.removeprefix(base), item.size or 0) for item in found if item.type == pafs.FileType.File]
    return sorted((name, size) for name, size in names if not _is_hidden(name))


def base_folder(path: AnyPath) -> AnyPath:
    """Return the folder that the names of `list_files` are relative to."""
    return path.parent if path.is_file() else path


def _is_hidden(name: str) -> bool:
    *folders, file = name.split("/")
    return file.startswith(".") or any(folder.startswith((".", "_")) for folder in folders)
