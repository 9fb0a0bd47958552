"""Places: paths of this machine, and URIs behind the part of `pathlib.Path` that we use."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from pyarrow import fs as pafs

from siclip_platform.errors import UserError
from siclip_platform.storage.filesystem import READING, open_filesystem, told

S3_OPTIONS = ("region", "scheme", "endpoint_override")
SECRET = ("key", "secret", "token", "password", "credential", "signature")


class Stat(NamedTuple):
    """The part of `os.stat_result` that a store knows."""

    st_size: int
    st_mtime_ns: int


@dataclass(frozen=True)
class RemotePath:
    """A file or folder at a URI ``ROOT/KEY?QUERY``; picklable, without credentials.

    Methods are those of `pathlib.Path`. They raise `UserError` where the store does not answer or refuses.
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
        return open_filesystem(self.root + (f"?{self.query}" if self.query else ""))[0]

    @property
    def path(self) -> str:
        base = open_filesystem(self.root + (f"?{self.query}" if self.query else ""))[1]
        return posixpath.join(base, self.key) if self.key else str(base)

    def _info(self) -> Any:
        with asking(self):
            return self.filesystem.get_file_info(self.path)

    def is_file(self) -> bool:
        return bool(self._info().type == pafs.FileType.File)

    def is_dir(self) -> bool:
        return bool(self._info().type == pafs.FileType.Directory)

    def exists(self) -> bool:
        return bool(self._info().type != pafs.FileType.NotFound)

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
        with self.open() as file:
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


Place = Path | RemotePath


def place(named: str | Place) -> Place:
    """A path or URI as a place; ``file://`` is a path.

    Raises:
        UserError: the URI holds credentials, or options that its scheme has not.
    """
    if not isinstance(named, str) or "://" not in named:
        return Path(named) if isinstance(named, str) else named
    refuse_credentials(named)
    parts = urlsplit(named)
    if parts.scheme == "file":
        return Path(parts.path)
    wrong = [name for name, _ in parse_qsl(parts.query) if name not in S3_OPTIONS]
    if parts.scheme == "s3" and (wrong or not parts.netloc):
        what = f"has no option {wrong[0]!r}: there are {', '.join(S3_OPTIONS)}" if wrong else "names no bucket"
        raise UserError(f"{named.partition('?')[0]} {what}")
    return RemotePath(f"{parts.scheme}://{parts.netloc}", parts.path.strip("/"), parts.query)


def located(named: str | Place) -> str:
    """A path or URI as it holds in any working folder."""
    return str(place(named).resolve())


def refuse_credentials(uri: str) -> None:
    """Refuse a URI that holds keys or a password: it would stand in recipes, logs and the tracking store.

    Raises:
        UserError: naming the URI without them.
    """
    parts = urlsplit(uri)
    in_query = [name for name, _ in parse_qsl(parts.query) if any(word in name.lower() for word in SECRET)]
    if parts.password is not None or (parts.scheme == "s3" and "@" in parts.netloc) or in_query:
        clean = parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
        raise UserError(
            f"{clean} was given with credentials in the URI, which would be written down: leave them out and set "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or what the store reads) in the environment"
        )


@contextmanager
def asking(where: RemotePath) -> Iterator[None]:
    """Tell what a store says as a `UserError`; a file that is not there stays a FileNotFoundError."""
    try:
        yield
    except FileNotFoundError:
        raise
    except READING as error:
        raise UserError(told(str(where), error)) from None
