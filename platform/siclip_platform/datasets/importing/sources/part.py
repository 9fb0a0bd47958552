"""A part of a source: what one task of the import reads."""

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
    """What one task reads. The dataset's manifest has a hash of all parts, so their fields are a stored format.

    Attributes:
        layout: of the source.
        name: the file, relative to the source.
        bytes: size of the file.
        split: of its rows; None: the import's.
        start: first row group of a Parquet file, or byte offset in a list.
        count: row groups of a Parquet file, or rows of a list.
        first: index of the first row in the file.
        header: names of the fields of a CSV file.
        columns: of a table or list.
        files: of a folder, relative to the source.
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


def read_samples(root: str, part: SourcePart) -> Iterator[SourceSample]:
    """Yield the samples of a part of the source ``root``, in order; an unreadable file is one rejected sample."""
    try:
        yield from _samples(root, part)
    except READ_ERRORS as error:
        rejected = Rejection(Reason.DAMAGED_SOURCE, f"the file cannot be read: {error}")
        yield SourceSample(part.name, "", "", rejected=rejected)


def _samples(root: str, part: SourcePart) -> Iterator[SourceSample]:
    filesystem, folder = filesystem_of(base_folder(as_path(root)))
    path = posixpath.join(folder, part.name)

    def read(name: str) -> bytes:
        # img2dataset and similar tools store URLs; relative paths refer to the file's folder.
        if "://" in name:
            return read_uri(name)
        return read_file(filesystem, posixpath.join(posixpath.dirname(path), name), decompress=True)

    if part.layout == "webdataset":
        yield from tar_samples(filesystem, path, part.name)
    elif part.layout == "folder":
        yield from folder_samples(filesystem, folder, list(part.files))
    elif part.layout == "parquet":
        groups = range(part.start, part.start + part.count)
        yield from parquet_samples(filesystem, path, part.name, groups, part.first, part.columns, read)
    elif part.layout == "arrow":
        yield from arrow_samples(filesystem, path, part.name, part.columns, read)
    else:
        with filesystem.open_input_file(path) as stream:
            stream.seek(part.start)
            yield from list_samples(stream, part.name, part.first, part.count, part.header, part.columns, read)
