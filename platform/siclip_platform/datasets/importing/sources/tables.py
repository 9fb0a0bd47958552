"""Samples from Parquet files (of img2dataset or any other) and from Arrow files that ``datasets`` saved."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from siclip_platform.datasets.importing.sources.columns import ColumnNames, row_sample
from siclip_platform.datasets.importing.sources.sample import Reason, Rejection, SourceSample
from siclip_platform.storage import READ_ERRORS

BATCH_ROWS = 256


def parquet_samples(
    filesystem: Any,
    path: str,
    name: str,
    groups: range,
    first: int,
    columns: ColumnNames,
    read: Callable[[str], bytes],
) -> Iterator[SourceSample]:
    """Yield the rows of some row groups, in order.

    In a damaged row group every row from the damage on is rejected; reading resumes with the next row group.

    Args:
        filesystem: of pyarrow.
        path: in the filesystem.
        name: of the file, relative to the source.
        groups: row groups to read.
        first: index in the file of the first row.
        columns: from `ColumnNames.found_in`.
        read: returns the bytes of an image for its path.
    """
    try:
        with pq.ParquetFile(path, filesystem=filesystem) as file:
            for group in groups:
                end = first + file.metadata.row_group(group).num_rows
                yield from _group(file, group, name, range(first, end), columns, read)
                first = end
    except READ_ERRORS as error:
        yield _damage(name, first, error)


def _group(
    file: Any, group: int, name: str, numbers: range, columns: ColumnNames, read: Callable[[str], bytes]
) -> Iterator[SourceSample]:
    """Yield the rows of a row group; ``numbers`` are their indices in the file."""
    number = numbers.start
    try:
        for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], use_threads=False):
            yield from _rows(batch, columns, name, number, read)
            number += batch.num_rows
    except READ_ERRORS as error:
        detail = f"row group {group} is damaged: {error}"
        for lost in range(number, numbers.stop):
            yield SourceSample(name, str(lost), "", rejected=Rejection(Reason.DAMAGED_SOURCE, detail))


def arrow_samples(
    filesystem: Any, path: str, name: str, columns: ColumnNames, read: Callable[[str], bytes]
) -> Iterator[SourceSample]:
    """Yield the rows of an Arrow IPC stream or file, in order, and a rejected sample where the file is damaged."""
    number = 0
    try:
        with filesystem.open_input_file(path) as stream:
            for batch in _batches(stream):
                yield from _rows(batch, columns, name, number, read)
                number += batch.num_rows
    except READ_ERRORS as error:
        yield _damage(name, number, error)


def _rows(
    batch: Any, columns: ColumnNames, name: str, first: int, read: Callable[[str], bytes]
) -> Iterator[SourceSample]:
    """Yield the rows of a batch; a row with an unreadable value, such as text that is not UTF-8, is rejected."""
    for number in range(batch.num_rows):
        try:
            # One row at a time: a single invalid value would make the conversion of the batch fail.
            [row] = batch.slice(number, 1).to_pylist()
        except (ValueError, OverflowError) as error:
            rejected = Rejection(Reason.DAMAGED_ROW, f"a value cannot be read: {error}")
            yield SourceSample(name, str(first + number), "", rejected=rejected)
        else:
            yield row_sample(row, columns, name, str(first + number), read)


def parquet_layout(filesystem: Any, path: str) -> tuple[list[str], list[int]]:
    """Return the names of the columns and the rows of each row group."""
    with pq.ParquetFile(path, filesystem=filesystem) as file:
        metadata = file.metadata
        return file.schema_arrow.names, [metadata.row_group(k).num_rows for k in range(metadata.num_row_groups)]


def arrow_names(filesystem: Any, path: str) -> list[str]:
    """Return the names of the columns."""
    with filesystem.open_input_file(path) as stream:
        return list(_reader(stream).schema.names)


def _reader(stream: Any) -> Any:
    """Open either Arrow format: Hugging Face writes streams; other tools write files, which begin with a magic."""
    is_file = bytes(stream.read(6)) == b"ARROW1"
    stream.seek(0)
    return pa.ipc.open_file(stream) if is_file else pa.ipc.open_stream(stream)


def _batches(stream: Any) -> Iterator[Any]:
    reader = _reader(stream)
    if hasattr(reader, "num_record_batches"):
        yield from (reader.get_batch(index) for index in range(reader.num_record_batches))
    else:
        yield from reader


def _damage(name: str, number: int, error: Exception) -> SourceSample:
    detail = f"the file is cut or damaged after {number} rows: {error}"
    return SourceSample(name, f"after row {number}", "", rejected=Rejection(Reason.DAMAGED_SOURCE, detail))
