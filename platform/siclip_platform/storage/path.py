"""Places: paths of this machine, and URIs behind the part of `pathlib.Path` that we use."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import pyarrow as pa
from pyarrow import fs as pafs

from siclip.errors import UserError
from siclip_platform.storage.filesystem import OPTIONS, READING, StoreError, open_filesystem, store_failed, told

S3_OPTIONS = ("region", "scheme", "endpoint_override")
SECRET = ("key", "secret", "token", "password", "credential", "signature")


class Stat(NamedTuple):
    """The part of `os.stat_result` that a store knows."""

    st_size: int
    st_mtime_ns: int


@dataclass(frozen=True)
class RemotePath:
    """A file or folder at a URI ``ROOT/KEY?QUERY``; picklable, without credentials.

    Methods are those of `pathlib.Path`. They raise `StoreError` where the store does not answer or refuses.
    """

    root: str
    key: str = ""
    query: str = ""

    def __str__(self) -> str:
        return str(self.plain) + (f"?{self.query}" if self.query else "")

    @property
    def plain(self) -> str:
        """The URI without its query."""
        return f"{self.root}/{self.key}" if self.key else self.root

    def __truediv__(self, name: str) -> RemotePath:
        return replace(self, key=posixpath.join(self.key, name))

    @property
    def name(self) -> str:
        return posixpath.basename(self.key) or self.root.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        return posixpath.splitext(self.key)[1]

    @property
    def parent(self) -> RemotePath:
        return replace(self, key=posixpath.dirname(self.key))

    def absolute(self) -> RemotePath:
        return self

    resolve = absolute

    def as_uri(self) -> str:
        return self.plain

    @property
    def filesystem(self) -> Any:
        """Of pyarrow; `path` is the place in it."""
        return self._opened[0]

    @property
    def path(self) -> str:
        filesystem, base = self._opened
        if isinstance(filesystem, pafs.PyFileSystem):  # fsspec's, which knows its own URIs
            return str(filesystem.handler.fs._strip_protocol(str(self)))
        return posixpath.join(base or "/", self.key) if self.key else str(base)

    @property
    def _opened(self) -> tuple[Any, str]:
        return open_filesystem(self.root + (f"?{self.query}" if self._has_options else ""))

    @property
    def _has_options(self) -> bool:
        return bool(self.query) and self.root.partition("://")[0] in OPTIONS

    @property
    def shown(self) -> str:
        """For messages: a query that is no option may be a signature."""
        return str(self) if self._has_options else self.plain

    def _info(self) -> Any:
        with asking(self):
            return self.filesystem.get_file_info(self.path)

    def is_file(self) -> bool:
        return bool(self._info().type == pafs.FileType.File)

    def stat(self) -> Stat:
        info = self._info()
        if info.type != pafs.FileType.File:
            raise FileNotFoundError(2, "there is no such file", str(self))
        return Stat(info.size or 0, info.mtime_ns or 0)

    def open(self, mode: str = "rb") -> Any:
        """For reading, by ranges."""
        assert mode == "rb"
        with asking(self):
            return self.filesystem.open_input_file(self.path)

    def read_bytes(self) -> bytes:
        with asking(self), self.filesystem.open_input_stream(self.path, compression=None) as file:
            return bytes(file.read())

    def write_bytes(self, content: bytes) -> None:
        """Whole or not at all, as object stores put."""
        with asking(self), self.filesystem.open_output_stream(self.path) as file:
            file.write(content)

    def unlink(self) -> None:
        with asking(self):
            self.filesystem.delete_file(self.path)

    def folders(self) -> list[RemotePath]:
        """The folders in this one."""
        with asking(self):
            found = self.filesystem.get_file_info(pafs.FileSelector(self.path, allow_not_found=True))
        return [self / item.base_name for item in found if item.type == pafs.FileType.Directory]


AnyPath = Path | RemotePath


def as_path(named: str | AnyPath, *, signed: bool = False) -> AnyPath:
    """A path or URI as a place; ``file://`` is a path.

    ``signed``: a signature may stand in the URI's query, which is then not to be written down.

    Raises:
        UserError: the URI holds credentials, or options that its scheme has not, or is a chain of fsspec's.
    """
    if not isinstance(named, str) or "://" not in named:
        return Path(named) if isinstance(named, str) else named
    if "::" in named.partition("?")[0]:
        raise UserError(f"{named.partition('://')[0]}://…::… is a chain of URIs, which is not read: copy the files")
    refuse_credentials(named, signed=signed)
    parts = urlsplit(named)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    wrong = [name for name, _ in parse_qsl(parts.query) if name not in S3_OPTIONS]
    if parts.scheme == "s3" and (wrong or not parts.netloc):
        what = f"has no option {wrong[0]!r}: there are {', '.join(S3_OPTIONS)}" if wrong else "names no bucket"
        raise UserError(f"{named.partition('?')[0]} {what}")
    return RemotePath(f"{parts.scheme}://{parts.netloc}", parts.path.strip("/"), parts.query)


def local_folder(named: str | Path, option: str) -> Path:
    """A folder of this machine, by path or ``file://``, for what is not written to a store.

    Raises:
        UserError: it is another URI, also where `Path` has taken one of its slashes; ``option`` is what named it.
    """
    if isinstance(named, str) and named.startswith("file://"):
        return Path(as_path(named))  # type: ignore[arg-type]
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(named)):
        refuse_credentials(re.sub(":/+", "://", str(named), count=1))
        raise UserError(f"{option} {named}: only a folder of this machine can be written to; name one")
    return Path(named)


def located(named: str | AnyPath) -> str:
    """A path or URI as it holds in any working folder."""
    return str(as_path(named).resolve())


def refuse_credentials(uri: str, *, signed: bool = False) -> None:
    """Refuse a URI that holds keys or a password: it would stand in recipes, logs and the tracking store.

    Raises:
        UserError: naming the URI without them.
    """
    parts = urlsplit(uri)
    in_query = [name for name, _ in parse_qsl(parts.query) if any(word in name.lower() for word in SECRET)]
    in_front = keys_in_front(parts)
    if in_front or (in_query and not signed):
        clean = f"{parts.scheme}://…" if in_front else parts._replace(query="", fragment="").geturl()
        raise UserError(
            f"{clean} was given with credentials in the URI, which would be written down: leave them out and set "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or what the store reads) in the environment"
        )


def keys_in_front(parts: SplitResult) -> bool:
    """Whether keys or a password stand before the path. A secret may hold "/", and then its rest is in the path."""
    user, _, host = parts.netloc.rpartition("@")
    if parts.scheme == "s3":
        return "@" in parts.netloc or ":" in parts.netloc  # a bucket's name has neither
    port = re.sub(r"^\[.*\]", "", host).partition(":")
    return ":" in user or bool(port[1] and not port[2].isdigit())


@contextmanager
def asking(where: AnyPath) -> Iterator[None]:
    """Tell what a store says as a `StoreError`; a file that is not there stays a FileNotFoundError."""
    try:
        yield
    except (FileNotFoundError, UserError):
        raise
    except READING as error:
        if isinstance(where, Path):
            raise
        raise StoreError(told(where.shown, error)) from None


@contextmanager
def parsing(where: AnyPath) -> Iterator[None]:
    """As `asking`, for a file that is parsed while it is read: what is wrong with its bytes is raised as it is."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        if isinstance(where, Path) or not store_failed(error):
            raise
        raise StoreError(told(where.shown, error)) from None
