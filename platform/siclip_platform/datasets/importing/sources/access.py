"""Which files a row of a source may name: regular files in the source's folder, and what the user allows besides."""

from __future__ import annotations

import http.client
import os
import posixpath
import stat
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from pyarrow import fs as pafs

from siclip.config import Config
from siclip.errors import UserError
from siclip_platform.datasets.importing.sources.limits import MAX_FILE_BYTES, MIB
from siclip_platform.datasets.importing.sources.sample import Reason, Rejection
from siclip_platform.storage import READ_ERRORS, AnyPath, as_path, filesystem_of, without_credentials
from siclip_platform.storage.path import RemotePath, store_errors

DOWNLOAD_SECONDS = 15
NEVER = ("/proc", "/sys", "/dev")
"""Folders whose files are no data: they hold the environment of processes, or never end."""
MEMORY_FOLDER = "/dev/shm"  # an ordinary file system in memory, where people put datasets


class Access(Config):
    """What the user allows the rows of a source to name besides the files of the source's folder.

    Attributes:
        outside: folders, absolute.
        hosts: hosts (or buckets) of addresses that may be downloaded.
    """

    outside: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()

    @classmethod
    def allowing(cls, outside: Sequence[str], hosts: Sequence[str]) -> Access:
        """Check and complete what the user named.

        Raises:
            UserError: a folder does not exist, or a host is no name of a host.
        """
        for folder in outside:
            if not Path(folder).is_dir():
                raise UserError(f"--allow-outside {folder} is not a folder: name an existing one")
        for host in hosts:
            if not host or "/" in host or "*" in host:
                raise UserError(f"--allow-download {host!r} is no host: name one such as images.example.org")
        return cls(outside=tuple(os.path.realpath(f) for f in outside), hosts=tuple(h.lower() for h in hosts))


@dataclass(frozen=True)
class Reader:
    """Reads the files that the rows of a source name.

    Attributes:
        root: the source's folder.
        access: what is allowed besides.
    """

    root: AnyPath
    access: Access

    def locate(self, name: str, beside: str) -> str:
        """Return where the file is that a row names: an absolute path with links resolved, or an address.

        Args:
            name: as the row has it.
            beside: the file with the row, relative to the source: relative paths start in its folder.

        Raises:
            Rejection: the file may not be read.
        """
        if "\0" in name:
            raise Rejection(Reason.REFUSED_PATH, "the path has a null character")
        if name.lower().startswith("file://"):
            name = unquote(urlsplit(name).path)
        if "://" in name:
            return self._address(name)
        if isinstance(self.root, RemotePath):
            path = posixpath.normpath(posixpath.join(posixpath.dirname(beside), name))
            if path.startswith(("/", "..")):
                raise Rejection(Reason.REFUSED_PATH, f"{name!r} is outside the source's folder")
            return path
        root = os.path.realpath(self.root)
        path = os.path.realpath(Path(root, posixpath.dirname(beside), name))
        if path.startswith(tuple(f"{folder}/" for folder in NEVER)) and not path.startswith(f"{MEMORY_FOLDER}/"):
            raise Rejection(Reason.REFUSED_PATH, f"{name!r} is in {NEVER[0]}, {NEVER[1]} or {NEVER[2]}")
        if not any(path.startswith(folder.rstrip("/") + "/") for folder in (root, *self.access.outside)):
            raise Rejection(
                Reason.REFUSED_PATH, f"{name!r} is outside the source's folder: allow one with --allow-outside FOLDER"
            )
        return path

    def read(self, location: str) -> bytes:
        """Return the content of what `locate` returned; a compression that the extension names is undone.

        Raises:
            Rejection: it is no regular file, or too large.
            UserError: a store does not answer.
            OSError: it cannot be read.
        """
        if location.lower().startswith(("http://", "https://")):
            return _download(location)
        if "://" in location:
            path = as_path(location, signed=True)
            with store_errors(path):
                return bounded(*filesystem_of(path), location)
        if isinstance(self.root, RemotePath):
            filesystem, folder = filesystem_of(self.root)
            return bounded(filesystem, posixpath.join(folder, location), location)
        # Opening a FIFO would wait for ever, so its kind is asked first.
        if not stat.S_ISREG(Path(location).stat().st_mode):
            raise Rejection(Reason.REFUSED_PATH, "it is no regular file")
        return bounded(pafs.LocalFileSystem(), location, location)

    def _address(self, name: str) -> str:
        clean = without_credentials(name)
        if isinstance(self.root, RemotePath) and name.startswith(f"{self.root.plain}/") and "/../" not in name:
            return name
        try:
            host = (urlsplit(name).hostname or "").lower()
        except ValueError:
            raise Rejection(Reason.REFUSED_PATH, f"{clean!r} is no address") from None
        if host not in self.access.hosts:
            raise Rejection(Reason.REFUSED_PATH, f"{clean}: addresses are only read with --allow-download HOST")
        return name


def check_files(root: AnyPath, names: Sequence[str], access: Access) -> None:
    """Refuse files of a source that are symbolic links to somewhere else.

    Raises:
        UserError: names the first of them.
    """
    if isinstance(root, RemotePath):
        return
    reader = Reader(root, access)
    for name in names:
        try:
            reader.locate(name, "")
        except Rejection as refused:
            raise UserError(f"{root / name} is a link to {os.path.realpath(root / name)}: {refused.detail}") from None


def bounded(filesystem: Any, path: str, shown: str, most: int = MAX_FILE_BYTES) -> bytes:
    """Return a file's content, decompressed as its extension says.

    Raises:
        Rejection: it has more than ``most`` bytes.
    """
    with filesystem.open_input_stream(path, compression="detect") as file:
        # In pieces: pyarrow allocates as many bytes as are asked for.
        pieces, size = [], 0
        while (piece := file.read(MIB)) and size <= most:
            pieces.append(piece)
            size += len(piece)
    if size > most:
        raise Rejection(Reason.DECOMPRESSION_BOMB, f"{posixpath.basename(shown)} has more than {most // MIB} MiB")
    return b"".join(pieces)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """An allowed host could otherwise send the reader to any other, such as one of the local network."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def _download(address: str) -> bytes:
    opener = urllib.request.OpenerDirector()
    # Not build_opener: it also reads file: and ftp: addresses.
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _NoRedirect(),
    ):
        opener.add_handler(handler)
    try:
        with opener.open(address, timeout=DOWNLOAD_SECONDS) as answer:
            data = bytes(answer.read(MAX_FILE_BYTES + 1))
    except urllib.error.HTTPError as error:
        raise Rejection(Reason.MISSING_IMAGE, f"{without_credentials(address)}: HTTP status {error.code}") from None
    except (http.client.HTTPException, *READ_ERRORS) as error:
        raise Rejection(Reason.MISSING_IMAGE, f"{without_credentials(address)}: {type(error).__name__}") from None
    if len(data) > MAX_FILE_BYTES:
        raise Rejection(Reason.DECOMPRESSION_BOMB, f"more than {MAX_FILE_BYTES // MIB} MiB")
    return data
