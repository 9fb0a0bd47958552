"""A piece of a source: what one task of the import reads."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from typing import Literal

from siclip.config import Config
from siclip_platform.datasets.importing.sources.columns import ColumnNames
from siclip_platform.datasets.importing.sources.lists import list_samples
from siclip_platform.datasets.importing.sources.members import folder_samples, tar_samples
from siclip_platform.datasets.importing.sources.sample import Reason, Rejection, SourceSample
from siclip_platform.datasets.importing.sources.tables import arrow_samples, parquet_samples
from siclip_platform.storage import READ_ERRORS, as_path, filesystem_of
from siclip_platform.storage.files import read_uri
from siclip_platform.storage.filesystem import read_file
from siclip_platform.storage.listing import base_folder

Layout = Literal["webdataset", "parquet", "list", "folder", "arrow"]


class SourcePart(Config):
    """``count`` rows (row groups of Parquet) from ``start`` on; ``start`` is a byte offset in a list.

    ``name``: the file, relative to the source; ``bytes``: its size. ``first``: number of its first row.
    """

    layout: Layout
    name: str
    bytes: int
    split: str | None = None
    start: int = 0
    count: int = 0
    first: int = 0
    header: tuple[str, ...] = ()
    columns: ColumnNames = ColumnNames()
    files: tuple[str, ...] = ()


def read_samples(root: str, piece: SourcePart) -> Iterator[SourceSample]:
    """The samples of a piece of the source ``root``, in order. A file that cannot be read is one rejected sample."""
    try:
        yield from _samples(root, piece)
    except READ_ERRORS as error:
        yield SourceSample(
            piece.name, "", "", rejected=Rejection(Reason.DAMAGED_SOURCE, f"the file cannot be read: {error}")
        )


def _samples(root: str, piece: SourcePart) -> Iterator[SourceSample]:
    filesystem, folder = filesystem_of(base_folder(as_path(root)))
    path = posixpath.join(folder, piece.name)

    def read(name: str) -> bytes:
        if "://" in name:
            return read_uri(name)
        return read_file(filesystem, posixpath.join(posixpath.dirname(path), name), decompress=True)

    if piece.layout == "webdataset":
        yield from tar_samples(filesystem, path, piece.name)
    elif piece.layout == "folder":
        yield from folder_samples(filesystem, folder, list(piece.files))
    elif piece.layout == "parquet":
        groups = range(piece.start, piece.start + piece.count)
        yield from parquet_samples(filesystem, path, piece.name, groups, piece.first, piece.columns, read)
    elif piece.layout == "arrow":
        yield from arrow_samples(filesystem, path, piece.name, piece.columns, read)
    else:
        with filesystem.open_input_file(path) as stream:
            stream.seek(piece.start)
            yield from list_samples(stream, piece.name, piece.first, piece.count, piece.header, piece.columns, read)
