"""Lists of image paths and captions (CSV, TSV, JSON lines), cut at byte offsets: a task reads only its rows."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

from siclip.errors import UserError
from siclip_platform.datasets.importing.sources.columns import ColumnNames, row_sample
from siclip_platform.datasets.importing.sources.sample import Reason, Rejection, SourceSample

DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".ndjson")
BUFFER = 2**20
Row = dict[str, Any] | Rejection


def rows_with_offsets(stream: Any, name: str, header: tuple[str, ...]) -> Iterator[tuple[int, Row]]:
    """Yield (bytes up to the row's end, row) from the stream's position; ``header`` has the names of a CSV's fields.

    A row that cannot be parsed is a `Rejection`. Bytes that are not UTF-8 are decoded to lone surrogates.
    """
    lines = _Lines(io.BufferedReader(stream, BUFFER))
    if name.lower().endswith(JSON_LINES):
        for line in lines:
            if line.strip():
                yield lines.bytes, _json_row(line)
        return
    reader = _reader(lines, name)
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield lines.bytes, Rejection(Reason.DAMAGED_ROW, f"cannot be parsed: {error}")
            continue
        if fields:
            yield lines.bytes, _csv_row(fields, header)


def read_header(stream: Any, name: str) -> tuple[tuple[str, ...], int]:
    """Return the names of the columns and the size of the header in bytes.

    JSON lines have no header (0 bytes); their columns are the keys of the first object.

    Raises:
        UserError: there is no readable header.
    """
    lines = _Lines(io.BufferedReader(stream, BUFFER))
    if name.lower().endswith(JSON_LINES):
        for line in lines:
            row = _json_row(line) if line.strip() else None
            if isinstance(row, dict):
                return tuple(row), 0
        return (), 0
    try:
        fields: list[str] = next(_reader(lines, name))
    except (StopIteration, csv.Error) as error:
        reason = str(error) or "it is empty"
        raise UserError(
            f"{name} has no header ({reason}): save it as UTF-8 with the names of the columns in the first line "
            "and Unix or Windows line ends"
        ) from None
    if "\0" in "".join(fields):
        raise UserError(f"{name} is not UTF-8 but looks like UTF-16: save it as UTF-8")
    return tuple(field.removeprefix("\ufeff") for field in fields), lines.bytes


def _reader(lines: _Lines, name: str) -> Any:
    # strict: an unclosed quotation mark, or text after a closing one, is an error of the row.
    return csv.reader(lines, delimiter=DELIMITERS[name[-4:].lower()], strict=True)


def list_samples(
    stream: Any,
    name: str,
    first: int,
    count: int,
    header: tuple[str, ...],
    columns: ColumnNames,
    read: Callable[[str], bytes],
) -> Iterator[SourceSample]:
    """Yield samples from the stream's position.

    Args:
        stream: a binary file.
        name: of the file, relative to the source.
        first: index in the list of the first row.
        count: of rows.
        header: names of a CSV's fields.
        columns: from `ColumnNames.found_in`.
        read: returns the bytes of an image for its path.
    """
    for number, (_, row) in enumerate(rows_with_offsets(stream, name, header), first):
        if number == first + count:
            return
        if isinstance(row, Rejection):
            yield SourceSample(name, str(number), "", rejected=row)
        else:
            yield row_sample(row, columns, name, str(number), read)


class _Lines:
    """Decoded lines of a file, and the number of bytes read so far."""

    def __init__(self, stream: io.BufferedReader) -> None:
        self.stream = stream
        self.bytes = 0

    def __iter__(self) -> Iterator[str]:
        for line in self.stream:
            self.bytes += len(line)
            # Decoding must not fail here: only the row with the bad bytes is rejected.
            yield line.decode("utf-8", errors="surrogateescape")


def _json_row(line: str) -> Row:
    try:
        row = json.loads(line.removeprefix("\ufeff"), parse_constant=str)
    except (ValueError, RecursionError) as error:
        return Rejection(Reason.DAMAGED_ROW, f"is not JSON: {error}")
    return row if isinstance(row, dict) else Rejection(Reason.DAMAGED_ROW, "is no JSON object")


def _csv_row(fields: list[str], header: tuple[str, ...]) -> Row:
    if len(fields) != len(header):
        return Rejection(Reason.DAMAGED_ROW, f"has {len(fields)} fields, the header {len(header)}")
    return dict(zip(header, fields, strict=True))
