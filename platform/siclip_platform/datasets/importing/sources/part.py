"""A part of a source: what one task of the import reads."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import SerializerFunctionWrapHandler, model_serializer

from siclip.config import Config
from siclip_platform.datasets.importing.sources.access import Access, Reader
from siclip_platform.datasets.importing.sources.columns import ColumnNames
from siclip_platform.datasets.importing.sources.lists import ListForm, list_samples
from siclip_platform.datasets.importing.sources.members import folder_samples, tar_samples
from siclip_platform.datasets.importing.sources.sample import Reason, Rejection, SourceSample
from siclip_platform.datasets.importing.sources.tables import arrow_samples, parquet_samples
from siclip_platform.storage import READ_ERRORS, as_path, filesystem_of
from siclip_platform.storage.listing import base_folder

Layout = Literal["webdataset", "datacompdr", "parquet", "list", "folder", "arrow"]


class SourcePart(Config):
    """What one task reads. The dataset's manifest has a hash of all parts, so their fields are a stored format.

    Attributes:
        layout: of the source.
        name: the file, relative to the source.
        bytes: size of the file.
        split: of its rows; None: the import's.
        keep_splits: keep the splits that its rows name, which precede ``split``.
        start: first row group of a Parquet file, or byte offset in a list.
        count: row groups of a Parquet file, or rows of a list.
        first: index of the first row in the file.
        header: names of the fields of a CSV file.
        delimiter: of the fields of a CSV file.
        columns: of a table or list.
        files: of a folder, relative to the source.
        root: index of the source's folder, if there are several.
    """

    layout: Layout
    name: str
    bytes: int
    split: str | None = None
    keep_splits: bool = True
    start: int = 0
    count: int = 0
    first: int = 0
    header: tuple[str, ...] = ()
    delimiter: str = ""
    columns: ColumnNames = ColumnNames()
    files: tuple[str, ...] = ()
    root: int = 0

    @model_serializer(mode="wrap")
    def _stored(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Omit what single sources do not have, so that equal sources give equal hashes as before."""
        tree: dict[str, Any] = dump(self)
        if not self.root:
            del tree["root"]
        return tree


def read_samples(root: str, part: SourcePart, access: Access | None = None) -> Iterator[SourceSample]:
    """Yield the samples of a part of the source ``root``, in order; an unreadable file is one rejected sample.

    Args:
        root: of the source.
        part: of the source.
        access: what rows may name besides the files of the source's folder; default: nothing.
    """
    try:
        yield from _samples(root, part, access or Access())
    except READ_ERRORS as error:
        rejected = Rejection(Reason.DAMAGED_SOURCE, f"the file cannot be read: {error}")
        yield SourceSample(part.name, "", "", rejected=rejected)


def _samples(root: str, part: SourcePart, access: Access) -> Iterator[SourceSample]:
    base = base_folder(as_path(root))
    filesystem, folder = filesystem_of(base)
    path = posixpath.join(folder, part.name)
    reader = Reader(base, access)
    if part.layout in ("webdataset", "datacompdr"):
        yield from tar_samples(filesystem, path, part.name, reinforced=part.layout == "datacompdr")
    elif part.layout == "folder":
        yield from folder_samples(reader, list(part.files))
    elif part.layout == "parquet":
        groups = range(part.start, part.start + part.count)
        yield from parquet_samples(filesystem, path, part.name, groups, part.first, part.columns, reader)
    elif part.layout == "arrow":
        yield from arrow_samples(filesystem, path, part.name, part.columns, reader)
    else:
        form = ListForm(part.header, part.delimiter, part.columns.image)
        rows = range(part.first, part.first + part.count)
        with filesystem.open_input_file(path) as stream:
            stream.seek(part.start)
            yield from list_samples(stream, part.name, rows, form, part.columns, reader)
