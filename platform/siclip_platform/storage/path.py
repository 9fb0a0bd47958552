"""Paths: local ones, and URIs with the methods of `pathlib.Path` that the platform uses."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from pyarrow import fs as pafs

from siclip.errors import UserError
from siclip.open_clip_models import OPEN_CLIP
from siclip_platform.storage.filesystem import (
    PYARROW_SCHEMES,
    READ_ERRORS,
    StoreError,
    explain,
    is_store_failure,
    open_filesystem,
    read_file,
)

S3_OPTIONS = ("region", "scheme", "endpoint_override")
SECRET = ("key", "secret", "token", "password", "credential", "signature")


class Stat(NamedTuple):
    """The fields of `os.stat_result` that a store knows."""

    st_size: int
    st_mtime_ns: int


@dataclass(frozen=True)
class RemotePath:
    """A file or folder at the URI ``ROOT/KEY?QUERY``; picklable, holds no credentials.

    The methods are those of `pathlib.Path`. They raise `StoreError` if the store does not answer or refuses.
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

    @property
    def shown(self) -> str:
        """The URI for messages, without a query that could hold a signature."""
        return str(self) if self._has_options else self.plain

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
        """The pyarrow filesystem; `path` is the path in it."""
        return self._opened[0]

    @property
    def path(self) -> str:
        filesystem, base = self._opened
        # fsspec maps each scheme to paths by its own rule: some keep the host, some drop it.
        if isinstance(filesystem, pafs.PyFileSystem):
            # fsspec has no public name for the method that turns a URI into the filesystem's own path.
            return str(filesystem.handler.fs._strip_protocol(str(self)))
        return posixpath.join(base or "/", self.key) if self.key else str(base)

    @property
    def _opened(self) -> tuple[Any, str]:
        return open_filesystem(self.root + (f"?{self.query}" if self._has_options else ""))

    @property
    def _has_options(self) -> bool:
        return bool(self.query) and self.root.partition("://")[0] in PYARROW_SCHEMES

    def _info(self) -> Any:
        with store_errors(self):
            return self.filesystem.get_file_info(self.path)

    def is_file(self) -> bool:
        return bool(self._info().type == pafs.FileType.File)

    def stat(self) -> Stat:
        info = self._info()
        if info.type != pafs.FileType.File:
            raise FileNotFoundError(2, "there is no such file", str(self))
        return Stat(info.size or 0, info.mtime_ns or 0)

    def open(self, mode: str = "rb") -> Any:
        """Open for reading with random access; each read is a request."""
        assert mode == "rb"
        with store_errors(self):
            return self.filesystem.open_input_file(self.path)

    def read_bytes(self) -> bytes:
        with store_errors(self):
            return read_file(self.filesystem, self.path)

    def write_bytes(self, content: bytes) -> None:
        """Write the file completely or not at all: object stores put whole objects."""
        with store_errors(self), self.filesystem.open_output_stream(self.path) as file:
            file.write(content)

    def unlink(self) -> None:
        with store_errors(self):
            self.filesystem.delete_file(self.path)

    def folders(self) -> list[RemotePath]:
        """Return the folders directly inside this one; none if it does not exist."""
        with store_errors(self):
            found = self.filesystem.get_file_info(pafs.FileSelector(self.path, allow_not_found=True))
        return [self / item.base_name for item in found if item.type == pafs.FileType.Directory]


AnyPath = Path | RemotePath


def as_path(named: str | AnyPath, *, signed: bool = False) -> AnyPath:
    """Return the `AnyPath` of a path or URI; ``file://`` gives a local path.

    Args:
        named: a path, a URI, or what this function returned before.
        signed: accept a signature in the URI's query. The caller must not store or print that query.

    Raises:
        UserError: the URI holds credentials, is a chain of fsspec URIs, or has options that its scheme does not know.
    """
    if not isinstance(named, str) or "://" not in named:
        return Path(named) if isinstance(named, str) else named
    if "::" in named.partition("?")[0]:
        raise UserError(
            f"{named.partition('://')[0]}://…::… is a chain of URIs, which is not supported: copy the files"
        )
    refuse_credentials(named, signed=signed)
    parts = urlsplit(named)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    unknown = [name for name, _ in parse_qsl(parts.query) if name not in S3_OPTIONS]
    if parts.scheme == "s3" and (unknown or not parts.netloc):
        options = ", ".join(S3_OPTIONS)
        problem = f"has no option {unknown[0]!r}: there are {options}" if unknown else "names no bucket"
        raise UserError(f"{named.partition('?')[0]} {problem}")
    return RemotePath(f"{parts.scheme}://{parts.netloc}", parts.path.strip("/"), parts.query)


def absolute_path(named: str | AnyPath) -> str:
    """Return a path or URI as text that is valid in any working folder."""
    return str(as_path(named).resolve())


def absolute_model(named: str | AnyPath) -> str:
    """Return a model's path or URI as `absolute_path` does, and ``open_clip:NAME:TAG`` as it is.

    A TAG that is the path of a file becomes absolute.
    """
    text = str(named)
    if not text.startswith(OPEN_CLIP):
        return absolute_path(named)
    name, _, tag = text.removeprefix(OPEN_CLIP).partition(":")
    return f"{OPEN_CLIP}{name}:{Path(tag).resolve()}" if tag and Path(tag).is_file() else text


def filesystem_of(path: AnyPath) -> tuple[Any, str]:
    """Return pyarrow's filesystem of a path and the path in it."""
    if isinstance(path, RemotePath):
        return path.filesystem, path.path
    return pafs.LocalFileSystem(), str(path.absolute())


def refuse_credentials(uri: str, *, signed: bool = False) -> None:
    """Refuse a URI with a key or password, which would be stored in recipes, logs and the tracking store.

    Args:
        uri: any URI.
        signed: accept a signature in the query.

    Raises:
        UserError: names the URI without them.
    """
    parts = urlsplit(uri)
    in_query = [name for name, _ in parse_qsl(parts.query) if any(word in name.lower() for word in SECRET)]
    in_front = _has_user_info(parts)
    if in_front or (in_query and not signed):
        clean = f"{parts.scheme}://…" if in_front else parts._replace(query="", fragment="").geturl()
        raise UserError(
            f"{clean} was given with credentials in the URI, which would be stored: remove them and set "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or what the store reads) in the environment"
        )


def without_credentials(uri: str) -> str:
    """Return a URI without user, password, key and query, so that it can be stored and printed."""
    scheme, mark, rest = uri.partition("://")
    if not mark:
        return uri
    host, slash, path = rest.partition("?")[0].partition("/")
    clean = f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"
    return f"{scheme}://…" if _has_user_info(urlsplit(clean)) else clean


def _has_user_info(parts: SplitResult) -> bool:
    """Return whether a key or password precedes the host. A secret may contain "/": then its rest is in the path."""
    user, _, host = parts.netloc.rpartition("@")
    if parts.scheme == "s3":
        return "@" in parts.netloc or ":" in parts.netloc  # the name of a bucket contains neither
    port = re.sub(r"^\[.*\]", "", host).partition(":")
    return ":" in user or bool(port[1] and not port[2].isdigit())


@contextmanager
def store_errors(path: AnyPath, *, parsing: bool = False) -> Iterator[None]:
    """Raise the failures of a store in the block as `StoreError`; a missing file stays a FileNotFoundError.

    Args:
        path: what the block accesses; errors of a local path are not changed.
        parsing: the block also parses the file: an error of the parser is not changed.
    """
    try:
        yield
    except (FileNotFoundError, UserError):
        raise
    except READ_ERRORS as error:
        if isinstance(path, Path) or (parsing and not is_store_failure(error)):
            raise
        raise StoreError(explain(path.shown, error)) from None
