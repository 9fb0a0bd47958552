"""Rows of a file with captions: CSV, TSV, JSON lines (also gzip, bzip2) or Parquet."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow.parquet as pq

from siclip.config import Config
from siclip.errors import UserError
from siclip_platform.datasets.importing.sources.columns import text_value
from siclip_platform.datasets.importing.sources.lists import (
    DELIMITERS,
    JSON_LINES,
    ListForm,
    read_header,
    rows_with_offsets,
)
from siclip_platform.datasets.importing.sources.sample import Reason, Rejection, captions_of
from siclip_platform.datasets.importing.sources.tables import group_problem
from siclip_platform.storage import READ_ERRORS, as_path, filesystem_of, without_credentials

PARQUET = ".parquet"
COMPRESSED = (".gz", ".bz2")
FORMATS = (*DELIMITERS, *JSON_LINES, PARQUET)
BATCH_ROWS = 1_000
Key = Literal["id", "url", "sha256"]


class CaptionColumns(Config):
    """What is read of a file with captions.

    Attributes:
        key: what of a sample identifies it.
        key_column: column with the key.
        columns: with captions: a text, or a list of texts.
        model: that wrote the captions; None: the name of their column.
    """

    key: Key
    key_column: str
    columns: tuple[str, ...]
    model: str | None = None


@dataclass(frozen=True)
class CaptionRow:
    """A row of a file.

    Attributes:
        number: of the row in the file, counted from 1.
        key: of the sample.
        captions: (text, model) of each.
    """

    number: int
    key: str
    captions: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class BadRow:
    """A row without a key or a caption; ``number`` as in `CaptionRow`."""

    number: int
    problem: str


def plain_name(name: str) -> str:
    """Return a file's name in lower case, without the extension of a compression."""
    name = name.lower()
    return next((name.removesuffix(suffix) for suffix in COMPRESSED if name.endswith(suffix)), name)


def check_columns(file: str, wanted: CaptionColumns) -> None:
    """Compare the columns of a file with those that are to be read.

    Raises:
        UserError: the file cannot be read, or lacks one of them.
    """
    found, where = _columns(file)
    for name, option in ((wanted.key_column, "--key-column"), *((name, "--column") for name in wanted.columns)):
        if name not in found:
            raise UserError(
                f"{where}: there is no column {name!r}: it has {', '.join(found)}; name one with {option}"
            )
        if found.count(name) > 1:
            raise UserError(f"{where}: the column {name!r} occurs {found.count(name)} times: rename one of them")


def _columns(file: str) -> tuple[list[str], str]:
    """Return the columns of a file, and the place where they stand for a message."""
    shown, path = without_credentials(file), as_path(file)
    if not plain_name(shown.partition("?")[0]).endswith(FORMATS):
        raise UserError(f"{shown} is none of {', '.join(FORMATS)} (also with .gz or .bz2): convert it to one of them")
    try:
        filesystem, inner = filesystem_of(path)
        if _is_parquet(file):
            with pq.ParquetFile(inner, filesystem=filesystem) as table:
                return list(table.schema_arrow.names), shown
        with filesystem.open_input_stream(inner, compression="detect") as stream:
            header, _, _ = read_header(stream, plain_name(inner))
            return list(header), f"{shown}:1"
    except READ_ERRORS as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{shown} cannot be read: {error}") from None


def _is_parquet(file: str) -> bool:
    return plain_name(file.partition("?")[0]).endswith(PARQUET)


def caption_rows(file: str, wanted: CaptionColumns) -> Iterator[CaptionRow | BadRow]:
    """Yield the rows of a file, in order.

    Raises:
        UserError: the file is damaged.
    """
    try:
        rows = _parquet_rows(file, wanted) if _is_parquet(file) else _list_rows(file, wanted)
        for number, row in enumerate(rows, 1):
            yield _row(number, row, wanted)
    except READ_ERRORS as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{without_credentials(file)} is damaged: {error}; get it again") from None


def _row(number: int, row: Mapping[str, Any] | Rejection, wanted: CaptionColumns) -> CaptionRow | BadRow:
    if isinstance(row, Rejection):
        return BadRow(number, row.detail)
    key = _key(row.get(wanted.key_column), wanted.key)
    if key is None:
        return BadRow(number, f"there is no key in the column {wanted.key_column!r}")
    found: list[tuple[str, str]] = []
    problem = "there is no caption"
    for column in wanted.columns:
        try:
            captions = captions_of(row.get(column))
        except Rejection as rejected:
            # Of several columns one may be empty.
            if rejected.reason not in (Reason.MISSING_CAPTION, Reason.EMPTY_CAPTION) or row.get(column) is not None:
                problem = f"{column}: {rejected.detail}"
            continue
        found += [(caption.text, wanted.model or column) for caption in captions]
    return CaptionRow(number, key, tuple(dict.fromkeys(found))) if found else BadRow(number, problem)


def _key(value: Any, kind: Key) -> str | None:
    if isinstance(value, bytes) and kind == "sha256":
        value = value.hex()
    if isinstance(value, float) and value.is_integer() and math.isfinite(value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        return None
    return normal_key(str(value), kind)


def normal_key(key: str, kind: Key) -> str:
    """Return a key in the form that is compared."""
    return key.strip().lower() if kind == "sha256" else key.strip()


def _list_rows(file: str, wanted: CaptionColumns) -> Iterator[Mapping[str, Any] | Rejection]:
    filesystem, path = filesystem_of(as_path(file))
    name = plain_name(path)
    with filesystem.open_input_stream(path, compression="detect") as stream:
        header, delimiter, offset = read_header(stream, name)
    with filesystem.open_input_stream(path, compression="detect") as stream:
        buffered = io.BufferedReader(stream)
        buffered.read(offset)
        form = ListForm(() if name.endswith(JSON_LINES) else header, delimiter, key=wanted.key_column)
        for _, row in rows_with_offsets(buffered, form):
            yield _with_values(row, wanted) if form.header and not isinstance(row, Rejection) else row


def _with_values(row: dict[str, Any], wanted: CaptionColumns) -> dict[str, Any] | Rejection:
    """Return a row of a CSV file with the values that its texts stand for."""
    try:
        return row | {column: text_value(row[column]) for column in wanted.columns}
    except Rejection as rejected:
        return rejected


def _parquet_rows(file: str, wanted: CaptionColumns) -> Iterator[Mapping[str, Any] | Rejection]:
    filesystem, path = filesystem_of(as_path(file))
    columns = list(dict.fromkeys((wanted.key_column, *wanted.columns)))
    with filesystem.open_input_file(path) as stream, pq.ParquetFile(path, filesystem=filesystem) as table:
        for group in range(table.metadata.num_row_groups):
            if problem := group_problem(table.metadata.row_group(group), stream):
                raise UserError(f"{without_credentials(file)}: row group {group} {problem}")
            for batch in table.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns, use_threads=False):
                for index in range(batch.num_rows):
                    try:
                        [row] = batch.slice(index, 1).to_pylist()
                    except (ValueError, OverflowError) as error:
                        row = Rejection(Reason.DAMAGED_ROW, f"a value cannot be read: {error}")
                    yield row
