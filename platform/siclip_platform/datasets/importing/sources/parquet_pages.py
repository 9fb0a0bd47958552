"""What the pages of a Parquet file claim, checked before Arrow allocates it.

The footer states the size of a column in a row group, and each page states its own, up to 2 GiB, to which it is
decompressed. Only the pages' headers are read, in Thrift's compact protocol.
"""

from __future__ import annotations

from typing import Any

from siclip_platform.datasets.importing.sources.limits import MAX_PAGE_HEADER_BYTES

BINARY, LIST, SET, MAP, STRUCT = 8, 9, 10, 11, 12
BOOLEANS, BYTE, INTEGERS, DOUBLE = (1, 2), 3, (4, 5, 6), 7
MAX_DEPTH = 16
FIRST_READ = 4096
UNCOMPRESSED_SIZE, COMPRESSED_SIZE = 2, 3  # fields of a page's header


def page_problem(stream: Any, group: Any) -> str:
    """Return what a page of a row group claims beyond the size of its column; empty if none does.

    Args:
        stream: the file, seekable.
        group: metadata of the row group.
    """
    for index in range(group.num_columns):
        column = group.column(index)
        # A page that is not compressed is not expanded either.
        if column.compression == "UNCOMPRESSED":
            continue
        position = column.data_page_offset
        if column.has_dictionary_page and column.dictionary_page_offset:
            position = min(position, column.dictionary_page_offset)
        end = position + column.total_compressed_size
        while position < end and (page := _page(stream, position)):
            length, unpacked, packed = page
            if unpacked > column.total_uncompressed_size:
                return (
                    f"has a page of {column.path_in_schema!r} that claims {unpacked} bytes, more than the "
                    f"{column.total_uncompressed_size} of the column"
                )
            position += length + packed
    return ""


def _page(stream: Any, position: int) -> tuple[int, int, int] | None:
    """Return the sizes of a page: of its header, unpacked and packed; None: it is none, which Arrow says better."""
    size = FIRST_READ
    while True:
        stream.seek(position)
        data = bytes(stream.read(size))
        try:
            header = _Compact(data)
            fields = header.struct()
            unpacked, packed = fields[UNCOMPRESSED_SIZE], fields[COMPRESSED_SIZE]
            return (header.position, unpacked, packed) if unpacked >= 0 and packed >= 0 else None
        except IndexError:
            # The header is longer, because of statistics, or the file ends.
            if len(data) < size or size >= MAX_PAGE_HEADER_BYTES:
                return None
            size *= 8
        except (KeyError, ValueError):
            return None


class _Compact:
    """Reads integers of a structure, and skips everything else."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0

    def struct(self, depth: int = 0) -> dict[int, int]:
        """Return the integers among the fields of a structure.

        Raises:
            IndexError: the data ends before it does.
            ValueError: it is none.
        """
        if depth > MAX_DEPTH:
            raise ValueError("nested too deeply")
        fields: dict[int, int] = {}
        number = 0
        while head := self._byte():
            step, kind = head >> 4, head & 15
            number = number + step if step else self._integer()
            if kind in INTEGERS:
                fields[number] = self._integer()
            elif kind not in BOOLEANS:
                self._skip(kind, depth + 1)
        return fields

    def _skip(self, kind: int, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise ValueError("nested too deeply")
        if kind in INTEGERS:
            self._integer()
        elif kind in (*BOOLEANS, BYTE):
            self._advance(1)
        elif kind == DOUBLE:
            self._advance(8)
        elif kind == BINARY:
            self._advance(self._unsigned())
        elif kind == STRUCT:
            self.struct(depth)
        elif kind in (LIST, SET):
            head = self._byte()
            count = head >> 4 if head >> 4 < 15 else self._unsigned()
            for _ in range(count):
                self._skip(head & 15, depth + 1)
        elif kind == MAP:
            count = self._unsigned()
            kinds = self._byte() if count else 0
            for _ in range(count):
                self._skip(kinds >> 4, depth + 1)
                self._skip(kinds & 15, depth + 1)
        else:
            raise ValueError(f"there is no type {kind}")

    def _byte(self) -> int:
        self.position += 1
        return self.data[self.position - 1]

    def _advance(self, count: int) -> None:
        self.position += count
        if self.position > len(self.data):
            raise IndexError

    def _unsigned(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
            if shift > 63:
                raise ValueError("a number is too long")

    def _integer(self) -> int:
        value = self._unsigned()
        return (value >> 1) ^ -(value & 1)
