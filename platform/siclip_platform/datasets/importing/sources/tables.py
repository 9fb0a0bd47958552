"""Samples from Parquet files (of img2dataset or any other) and from Arrow files that ``datasets`` saved."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from siclip_platform.datasets.importing.sources.arrow_messages import check_messages, stream_start
from siclip_platform.datasets.importing.sources.columns import ColumnNames, RowReader, row_sample
from siclip_platform.datasets.importing.sources.limits import (
    MAX_BATCH_BYTES,
    MAX_GROUP_BYTES,
    MAX_GROUP_ROWS,
    MAX_PAGE_RATIO,
    RATIO_FROM,
)
from siclip_platform.datasets.importing.sources.parquet_pages import page_problem
from siclip_platform.datasets.importing.sources.sample import Reason, Rejection, SourceSample
from siclip_platform.storage import READ_ERRORS

BATCH_ROWS = 256
Labels = Mapping[str, list[str]]
"""Column → names of its classes."""


def parquet_samples(
    filesystem: Any,
    path: str,
    name: str,
    groups: range,
    first: int,
    columns: ColumnNames,
    reader: RowReader,
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
        reader: of the files that rows name.
    """
    try:
        with filesystem.open_input_file(path) as stream, pq.ParquetFile(path, filesystem=filesystem) as file:
            labels = class_names(file.schema_arrow)
            for group in groups:
                end = first + file.metadata.row_group(group).num_rows
                problem = group_problem(file.metadata.row_group(group), stream)
                if problem:
                    rejected = Rejection(Reason.DECOMPRESSION_BOMB, f"row group {group} {problem}")
                    yield SourceSample(name, f"row group {group}", "", rejected=rejected)
                else:
                    yield from _group(file, group, name, range(first, end), columns, labels, reader)
                first = end
    except READ_ERRORS as error:
        yield _damage(name, first, error)


def group_problem(group: Any, stream: Any) -> str:
    """Return what a row group claims beyond the limits; nothing of it is then read.

    Args:
        group: its metadata.
        stream: the file, seekable.
    """
    if not 0 <= group.num_rows <= MAX_GROUP_ROWS:
        return f"claims {group.num_rows} rows, more than {MAX_GROUP_ROWS}"
    sizes = [group.column(index) for index in range(group.num_columns)]
    total = sum(column.total_uncompressed_size for column in sizes)
    if total > MAX_GROUP_BYTES:
        return f"has {total} bytes uncompressed, more than {MAX_GROUP_BYTES}"
    for column in sizes:
        size, compressed = column.total_uncompressed_size, column.total_compressed_size
        if size > RATIO_FROM and size > MAX_PAGE_RATIO * compressed:
            return f"expands {compressed} bytes of the column {column.path_in_schema!r} to {size}"
    return page_problem(stream, group)


def _batch_rows(group: Any) -> int:
    """Return how many rows are decoded at once: each row may refer to one huge entry of a dictionary."""
    sizes = [
        column.total_uncompressed_size
        for column in (group.column(index) for index in range(group.num_columns))
        if any("DICTIONARY" in encoding for encoding in column.encodings)
    ]
    return int(max(1, min(BATCH_ROWS, MAX_BATCH_BYTES // max([1, *sizes]))))


def _group(
    file: Any,
    group: int,
    name: str,
    numbers: range,
    columns: ColumnNames,
    labels: Labels,
    reader: RowReader,
) -> Iterator[SourceSample]:
    """Yield the rows of a row group; ``numbers`` are their indices in the file."""
    number = numbers.start
    try:
        rows = _batch_rows(file.metadata.row_group(group))
        for batch in file.iter_batches(rows, row_groups=[group], use_threads=False):
            yield from _rows(batch, columns, name, number, labels, reader)
            number += batch.num_rows
        if number != numbers.stop:
            raise ValueError(f"it has {number - numbers.start} rows instead of {len(numbers)}")
    except READ_ERRORS as error:
        detail = f"row group {group} is damaged: {error}"
        for lost in range(number, numbers.stop):
            yield SourceSample(name, str(lost), "", rejected=Rejection(Reason.DAMAGED_SOURCE, detail))


def arrow_samples(
    filesystem: Any, path: str, name: str, columns: ColumnNames, reader: RowReader
) -> Iterator[SourceSample]:
    """Yield the rows of an Arrow IPC stream or file, in order, and a rejected sample where the file is damaged."""
    number = 0
    try:
        with filesystem.open_input_file(path) as stream:
            batches, problem = check_messages(stream)
            opened = _reader(stream, problem if not batches else "")
            labels = class_names(opened.schema)
            for batch in islice(opened, batches):
                _check_offsets(batch)
                yield from _rows(batch, columns, name, number, labels, reader)
                number += batch.num_rows
            if problem:
                raise ValueError(problem)
    except READ_ERRORS as error:
        yield _damage(name, number, error)


def _rows(
    batch: Any, columns: ColumnNames, name: str, first: int, labels: Labels, reader: RowReader
) -> Iterator[SourceSample]:
    """Yield the rows of a batch; a row with an unreadable value, such as text that is not UTF-8, is rejected."""
    for number in range(batch.num_rows):
        try:
            # One row at a time: a single invalid value would make the conversion of the batch fail.
            [row] = batch.slice(number, 1).to_pylist()
            row |= {column: _label(row[column], names) for column, names in labels.items()}
        except (ValueError, OverflowError, RecursionError) as error:
            rejected = Rejection(Reason.DAMAGED_ROW, f"a value cannot be read: {error}")
            yield SourceSample(name, str(first + number), "", rejected=rejected)
        else:
            yield row_sample(row, columns, name, str(first + number), reader)


def class_names(schema: pa.Schema) -> Labels:
    """Return column → names of its classes, as Hugging Face ``datasets`` stores them in the metadata of a schema."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        found = {name: feature["names"] for name, feature in features.items() if _is_class_label(feature)}
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        # Other programs' metadata: the labels then stay numbers.
        return {}
    return {name: names for name, names in found.items() if name in schema.names}


def _is_class_label(feature: Any) -> bool:
    if not isinstance(feature, Mapping) or feature.get("_type") != "ClassLabel":
        return False
    names = feature.get("names")
    return isinstance(names, list) and all(isinstance(name, str) for name in names)


def _label(value: Any, names: list[str]) -> Any:
    """Return the name of a class; ``datasets`` writes -1 where there is none."""
    if not isinstance(value, int) or value == -1:
        return None if value == -1 else value
    if not 0 <= value < len(names):
        raise ValueError(f"the label {value} has no name: there are {len(names)}")
    return names[value]


def parquet_layout(filesystem: Any, path: str) -> tuple[list[str], list[int]]:
    """Return the names of the columns and the rows of each row group."""
    with pq.ParquetFile(path, filesystem=filesystem) as file:
        metadata = file.metadata
        return file.schema_arrow.names, [metadata.row_group(k).num_rows for k in range(metadata.num_row_groups)]


def arrow_names(filesystem: Any, path: str) -> list[str]:
    """Return the names of the columns."""
    with filesystem.open_input_file(path) as stream:
        batches, problem = check_messages(stream)
        return list(_reader(stream, problem if not batches else "").schema.names)


def arrow_rows(filesystem: Any, path: str) -> int:
    """Return the number of rows."""
    with filesystem.open_input_file(path) as stream:
        batches, problem = check_messages(stream)
        opened = _reader(stream, problem if not batches else "")
        return sum(batch.num_rows for batch in islice(opened, batches))


def _reader(stream: Any, problem: str) -> Any:
    """Open either Arrow format: Hugging Face writes streams; other tools write files, which hold one."""
    if problem:
        raise ValueError(problem)
    stream.seek(stream_start(stream))
    return pa.ipc.open_stream(stream)


def _check_offsets(batch: pa.RecordBatch) -> None:
    """Check that no value lies outside of its buffer, where reading it would end the process.

    Raises:
        pyarrow.ArrowInvalid: one does.
    """
    for column in batch.columns:
        # As bytes: a text that is not UTF-8 costs its own row only.
        is_text = pa.types.is_string(column.type)
        (column.view(pa.binary()) if is_text else column).validate(full=True)


def _damage(name: str, number: int, error: Exception) -> SourceSample:
    detail = f"the file is cut or damaged after {number} rows: {error}"
    return SourceSample(name, f"after row {number}", "", rejected=Rejection(Reason.DAMAGED_SOURCE, detail))
