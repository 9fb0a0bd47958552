"""Lists of image paths and captions (CSV, TSV, JSON lines), cut at byte offsets: a task reads only its rows."""

from __future__ import annotations

import csv
import io
import json
import posixpath
import re
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

from siclip.errors import UserError
from siclip_platform.datasets.importing.sources.columns import (
    ColumnNames,
    RowReader,
    row_sample,
    text_value,
    unique_keys,
)
from siclip_platform.datasets.importing.sources.limits import MAX_LINE_BYTES, MAX_QUOTED_BYTES
from siclip_platform.datasets.importing.sources.sample import Reason, Rejection, SourceSample

DELIMITERS = {".csv": ",", ".tsv": "\t"}
OTHER_DELIMITERS = ("\t", ",", ";", "|")
JSON_LINES = (".jsonl", ".ndjson")
BUFFER = 2**20
Row = dict[str, Any] | Rejection


class ListForm(NamedTuple):
    """How the rows of a list are read.

    Attributes:
        header: names of a CSV file's fields; empty for JSON lines.
        delimiter: of a CSV file's fields.
        image: name of the field with the image's path.
        key: name of the field that identifies the row, in a list without paths.
    """

    header: tuple[str, ...] = ()
    delimiter: str = ""
    image: str | None = None
    key: str | None = None


def rows_with_offsets(stream: Any, form: ListForm) -> Iterator[tuple[int, Row]]:
    """Yield (bytes up to the row's end, row) from the stream's position.

    A row that cannot be parsed is a `Rejection`. Bytes that are not UTF-8 are decoded to lone surrogates.
    """
    lines = _Lines(io.BufferedReader(stream, BUFFER))
    while lines.fetch():
        if lines.too_long:
            row: Row | None = Rejection(Reason.DECOMPRESSION_BOMB, f"its line has more than {MAX_LINE_BYTES} bytes")
            lines.consume(1)
        elif form.header:
            row = _csv_row(lines, form)
        else:
            line = lines.pending[0][0]
            lines.consume(1)
            row = _json_row(line) if line.strip() else None
        if row is not None:
            yield lines.bytes, row


def read_header(stream: Any, name: str) -> tuple[tuple[str, ...], str, int]:
    """Return the names of the columns, the delimiter and the size of the header in bytes.

    The delimiter is the usual one of the file's extension, or else the one that the header has. JSON lines have no
    header (0 bytes); their columns are the keys of the first object.

    Raises:
        UserError: there is no readable header.
    """
    lines = _Lines(io.BufferedReader(stream, BUFFER))
    if name.lower().endswith(JSON_LINES):
        while lines.fetch():
            row = _json_row(lines.pending[0][0])
            lines.consume(1)
            if isinstance(row, dict):
                return tuple(row), "", 0
        raise UserError(f"{name} has no line with a JSON object: write one object per line, not an array")
    usual = DELIMITERS[name[-4:].lower()]
    reason = "it is empty"
    if lines.fetch():
        try:
            first = lines.pending[0][0].removeprefix("\ufeff")
            lines.consume(1)
            if "\0" in first:
                raise UserError(f"{name} is not UTF-8 but looks like UTF-16: save it as UTF-8")
            found = {d: next(csv.reader([first], delimiter=d, strict=True), []) for d in (usual, *OTHER_DELIMITERS)}
            delimiter = usual if len(found[usual]) > 1 else max(found, key=lambda d: len(found[d]))
            if fields := tuple(field.strip() for field in found[delimiter]):
                return fields, delimiter, lines.bytes
        except csv.Error as error:
            reason = str(error)
    raise UserError(
        f"{name} has no header ({reason}): save it as UTF-8 with the names of the columns in the first line "
        "and Unix or Windows line ends"
    )


def list_samples(
    stream: Any, name: str, rows: range, form: ListForm, columns: ColumnNames, reader: RowReader
) -> Iterator[SourceSample]:
    """Yield samples from the stream's position.

    Args:
        stream: a binary file.
        name: of the file, relative to the source.
        rows: indices of the rows in the list.
        form: of the list.
        columns: from `ColumnNames.found_in`.
        reader: of the files that rows name.
    """
    number = rows.start
    for number, (_, row) in enumerate(rows_with_offsets(stream, form), rows.start):
        if number == rows.stop:
            return
        try:
            if isinstance(row, Rejection):
                raise row
            if form.header:
                row |= {column: text_value(row[column]) for column in columns.caption}
            yield row_sample(row, columns, name, str(number), reader)
        except Rejection as rejected:
            yield SourceSample(name, str(number), "", rejected=rejected)
    if number + 1 < rows.stop:
        # Found by counting: the file was another one when the import was planned.
        detail = f"the file was changed: it has {number + 1} rows instead of at least {rows.stop}"
        yield SourceSample(name, f"after row {number}", "", rejected=Rejection(Reason.DAMAGED_SOURCE, detail))


class _Lines:
    """Decoded lines of a file that are not consumed yet, and the number of bytes consumed so far.

    Attributes:
        pending: (line, its bytes, whether it is longer than the limit, in which case only its beginning is kept).
        bytes: consumed.
    """

    def __init__(self, stream: io.BufferedReader) -> None:
        self.stream = stream
        self.pending: deque[tuple[str, int, bool]] = deque()
        self.bytes = 0

    def fetch(self, count: int = 1) -> bool:
        """Read until ``count`` lines are pending; return False at the end of the file."""
        while len(self.pending) < count:
            line = self.stream.readline(MAX_LINE_BYTES + 1)
            if not line:
                return False
            size, long = len(line), len(line) > MAX_LINE_BYTES
            piece = line
            while not piece.endswith(b"\n") and (piece := self.stream.readline(MAX_LINE_BYTES)):
                size += len(piece)
            # Decoding must not fail here: only the row with the bad bytes is rejected.
            text = line[:100] if long else line
            self.pending.append((text.decode("utf-8", errors="surrogateescape"), size, long))
        return True

    @property
    def too_long(self) -> bool:
        return self.pending[0][2]

    def consume(self, count: int) -> None:
        for _ in range(count):
            self.bytes += self.pending.popleft()[1]

    def ahead(self) -> Iterator[str]:
        """Yield the pending lines and those after them, up to the limit of a row."""
        index = size = 0
        while size < MAX_QUOTED_BYTES and self.fetch(index + 1):
            line, length, long = self.pending[index]
            if long and index:
                return
            index, size = index + 1, size + length
            yield line


def _csv_row(lines: _Lines, form: ListForm) -> Row | None:
    """Consume one row; None if it is blank.

    A quotation mark that opens a field and is never closed would otherwise take the following rows into that field.
    Only its own line is rejected.
    """
    # strict: an unclosed quotation mark, or text after a closing one, is an error of the row.
    reader = csv.reader(lines.ahead(), delimiter=form.delimiter, strict=True)
    try:
        fields = next(reader)
        count = reader.line_num
    except (csv.Error, StopIteration) as error:
        lines.consume(1)
        return Rejection(Reason.DAMAGED_ROW, f"cannot be parsed: {error}; quotation marks in a field must be doubled")
    if count > 1 and _swallows_rows(lines, count, fields, form):
        lines.consume(1)
        return Rejection(Reason.DAMAGED_ROW, "a quotation mark opens a field and is not closed before the next row")
    lines.consume(count)
    if not fields:
        return None
    if len(fields) != len(form.header):
        return Rejection(Reason.DAMAGED_ROW, f"has {len(fields)} fields, the header {len(form.header)}")
    return dict(zip(form.header, fields, strict=True))


def _swallows_rows(lines: _Lines, count: int, fields: list[str], form: ListForm) -> bool:
    """Return whether a further line of a row over several lines is a row by itself: as many fields as the header,
    with an image's path that has the extension of this row's, or a key that looks like this row's."""
    width = len(form.header)
    name, kind = (form.image, _extension) if form.key is None else (form.key, _shape)
    column = form.header.index(name) if name in form.header else 0
    own = kind(fields[column]) if column < len(fields) else ""
    for index in range(1, count):
        row = lines.pending[index][0].rstrip("\r\n").split(form.delimiter)
        if len(row) >= width and kind(row[column].strip('"')) == own:
            return True
    return False


def _shape(key: str) -> str:
    """Return what keys of one kind have in common: they are addresses, hashes, or built alike."""
    if "://" in key:
        return "address"
    if re.fullmatch("[0-9a-fA-F]{16,}", key):
        return "hash"
    return re.sub("[^\\W\\d_]+", "a", re.sub(r"\d+", "9", key))


def _extension(path: str) -> str:
    return posixpath.splitext(path)[1].lower()


def _json_row(line: str) -> Row:
    try:
        row = json.loads(line.removeprefix("\ufeff"), object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        return Rejection(Reason.DAMAGED_ROW, f"is not JSON: {error}")
    except Rejection as rejected:
        return rejected
    return row if isinstance(row, dict) else Rejection(Reason.DAMAGED_ROW, "is no JSON object")
