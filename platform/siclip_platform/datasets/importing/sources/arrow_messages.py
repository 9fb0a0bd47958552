"""What the messages of an Arrow IPC stream or file claim, checked before Arrow allocates it.

Only their headers are read. The layout is that of Arrow's specification of IPC: an optional continuation mark, the
header's length, the header (a flatbuffer), then the body with the buffers. A file is a stream behind eight bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

from siclip_platform.datasets.importing.sources.limits import (
    MAX_ARROW_HEADER_BYTES,
    MAX_GROUP_BYTES,
    MAX_GROUP_ROWS,
    MAX_PAGE_RATIO,
    RATIO_FROM,
)

FILE_MAGIC = b"ARROW1"
CONTINUATION = 0xFFFFFFFF
DICTIONARY_BATCH, RECORD_BATCH = 2, 3


def stream_start(stream: Any) -> int:
    """Return where the messages begin."""
    stream.seek(0)
    return 8 if bytes(stream.read(6)) == FILE_MAGIC else 0


def check_messages(stream: Any) -> tuple[int, str]:
    """Compare what the messages claim with the limits and with the size of the file.

    Args:
        stream: seekable; its position is changed.

    Returns:
        How many batches may be read, and the problem of what follows them; empty if there is none.
    """
    size, batches = stream.size(), 0
    try:
        for start, message in _messages(stream, size):
            if not 0 <= message.body <= min(size - start, MAX_GROUP_BYTES):
                return batches, f"a message claims {message.body} bytes, and the file has {size - start} more"
            if not 0 <= message.rows <= MAX_GROUP_ROWS:
                return batches, f"a batch claims {message.rows} rows, more than {MAX_GROUP_ROWS}"
            if message.buffers:
                _check_unpacked(stream, start, message)
            batches += message.is_batch
    except struct.error as error:
        return batches, f"the header of a message is damaged: {error}"
    except ValueError as error:
        return batches, str(error)
    return batches, ""


class _Message(NamedTuple):
    """The bytes of the body, whether it is a batch of rows, how many, and (offset, length) of compressed buffers."""

    body: int
    is_batch: bool = False
    rows: int = 0
    buffers: tuple[tuple[int, int], ...] = ()


def _messages(stream: Any, size: int) -> Iterator[tuple[int, _Message]]:
    """Yield where the body of each message begins, and the message."""
    position = stream_start(stream)
    while position + 4 <= size:
        stream.seek(position)
        head = bytes(stream.read(8))
        marked = struct.unpack_from("<I", head)[0] == CONTINUATION
        position += 8 if marked else 4
        length = struct.unpack_from("<i", head, 4 if marked else 0)[0]
        if length == 0:
            return
        if not 0 < length <= min(size - position, MAX_ARROW_HEADER_BYTES):
            raise ValueError(f"the header of a message claims {length} bytes")
        stream.seek(position)
        message = _message(bytes(stream.read(length)))
        yield position + length, message
        position += length + message.body


def _message(header: bytes) -> _Message:
    table = struct.unpack_from("<I", header)[0]
    kind = _scalar(header, table, 1, "<B")
    body = _scalar(header, table, 3, "<q")
    batch = _table(header, table, 2)
    if kind == DICTIONARY_BATCH and batch:
        batch = _table(header, batch, 1)
    if kind not in (DICTIONARY_BATCH, RECORD_BATCH) or not batch:
        return _Message(body)
    is_batch = kind == RECORD_BATCH
    rows = _scalar(header, batch, 0, "<q")
    buffers: list[tuple[int, int]] = []
    if _table(header, batch, 3) and (vector := _table(header, batch, 2)):
        count = struct.unpack_from("<I", header, vector)[0]
        if count * 16 > len(header):
            raise ValueError(f"a batch claims {count} buffers")
        buffers = [struct.unpack_from("<qq", header, vector + 4 + 16 * index) for index in range(count)]
    return _Message(body, is_batch, rows, tuple(buffers))


def _slot(data: bytes, table: int, index: int) -> int:
    """Return where a field of a flatbuffer's table is; 0: the table does not have it."""
    fields = table - struct.unpack_from("<i", data, table)[0]
    if fields < 0 or 4 + 2 * index + 2 > struct.unpack_from("<H", data, fields)[0]:
        return 0
    offset = struct.unpack_from("<H", data, fields + 4 + 2 * index)[0]
    return table + offset if offset else 0


def _scalar(data: bytes, table: int, index: int, form: str) -> int:
    slot = _slot(data, table, index)
    return int(struct.unpack_from(form, data, slot)[0]) if slot else 0


def _table(data: bytes, table: int, index: int) -> int:
    slot = _slot(data, table, index)
    return slot + int(struct.unpack_from("<I", data, slot)[0]) if slot else 0


def _check_unpacked(stream: Any, start: int, message: _Message) -> None:
    """Each compressed buffer begins with its size after decompression, or with -1 if it is stored as it is."""
    total = 0
    for offset, length in message.buffers:
        if length < 8:
            continue
        if not 0 <= offset <= message.body - length:
            raise ValueError("a buffer is outside of its message")
        stream.seek(start + offset)
        size = struct.unpack("<q", bytes(stream.read(8)))[0]
        total += length if size == -1 else size
        if size < -1 or total > MAX_GROUP_BYTES or (size > RATIO_FROM and size > MAX_PAGE_RATIO * length):
            raise ValueError(f"a buffer of {length} bytes claims to expand to {size}")
