"""Tar archives as a stream of members, in bounded memory whatever the archive claims.

tarfile reads extended headers as a whole, keeps every member and every global header, decompresses a block to
whatever size it expands to, and takes an archive that ends in the middle of a header for a whole one. Each is caught
here.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from siclip_platform.datasets.importing.sources.limits import (
    MAX_DECODER_BYTES,
    MAX_GLOBAL_KEYS,
    MAX_HEADER_BYTES,
    MAX_HEADERS,
    MAX_MEMBER_BYTES,
    MIB,
)
from siclip_platform.storage import READ_ERRORS

BROKEN_ARCHIVE = (tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, *READ_ERRORS)
EXTENDED = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
AFTER_END_BYTES = 64 * MIB  # how far data after the end mark is looked for


class _Header(tarfile.TarInfo):
    """Refuses headers that take memory without bound; marks the archive when its end mark is read."""

    @classmethod
    def frombuf(cls, buf: Any, encoding: Any, errors: Any) -> Any:
        header = super().frombuf(buf, encoding, errors)
        if header.type in EXTENDED and header.size > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {header.size} bytes, more than {MAX_HEADER_BYTES}")
        if not 0 <= header.size <= MAX_MEMBER_BYTES:
            raise tarfile.ReadError(f"member {header.name!r} claims {header.size} bytes")
        if header.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.ReadError(f"member {header.name!r} is sparse, which is not supported")
        return header

    @classmethod
    def fromtarfile(cls, archive: Any) -> Any:
        archive.depth = getattr(archive, "depth", 0) + 1
        try:
            if archive.depth > MAX_HEADERS:
                raise tarfile.ReadError(f"more than {MAX_HEADERS} headers of one member")
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            # tarfile accepts a truncated archive as a whole one.
            archive.ended = True
            raise
        finally:
            archive.depth -= 1

    def _proc_gnusparse_10(self, *_: Any) -> None:
        """tarfile calls it for a map of holes in the data, which may have billions of entries."""
        raise tarfile.ReadError(f"member {self.name!r} is sparse, which is not supported")


class Archive:
    """The members of a tar archive, in order.

    Attributes:
        count: members read so far.
    """

    def __init__(self, stream: Any) -> None:
        self.count = 0
        self._stream = io.BufferedReader(_decompressed(io.BufferedReader(stream, MIB)), MIB)
        self._archive: Any = tarfile.open(fileobj=self._stream, mode="r|", bufsize=MIB, tarinfo=_Header)  # noqa: SIM115

    def __iter__(self) -> Iterator[tarfile.TarInfo]:
        """Yield the members.

        Raises:
            tarfile.ReadError: the archive is cut, or something follows its end mark. BROKEN_ARCHIVE in general.
        """
        archive = self._archive
        while (member := archive.next()) is not None:
            archive.members = []  # webdataset does the same: the list would grow with the archive
            if len(archive.pax_headers) > MAX_GLOBAL_KEYS:
                raise tarfile.ReadError(f"global headers with more than {MAX_GLOBAL_KEYS} keys")
            self.count += 1
            yield cast(tarfile.TarInfo, member)
        if not getattr(archive, "ended", False):
            raise tarfile.ReadError("its end mark is missing")
        self._check_end()

    def read(self, member: tarfile.TarInfo) -> bytes:
        """Return the content of the member that was yielded last."""
        file = self._archive.extractfile(member)
        data = bytes(file.read()) if file else b""
        if len(data) < member.size:
            raise tarfile.ReadError(f"member {member.name!r} is cut")
        return data

    def _check_end(self) -> None:
        """Members of a second archive that was appended with ``cat`` are read by no reader, webdataset's included."""
        for _ in range(AFTER_END_BYTES // MIB):
            piece = self._archive.fileobj.read(MIB)
            if piece.strip(b"\0"):
                raise tarfile.ReadError("data follows its end mark: join archives with tar --concatenate, not cat")
            if not piece:
                return


def _decompressed(stream: io.BufferedReader) -> Any:
    """Return a stream of the decompressed bytes; each decoder returns at most the requested number of bytes."""
    start = stream.peek(6)[:6]
    if start.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=cast(BinaryIO, stream))
    if start.startswith(b"BZh"):
        return bz2.BZ2File(stream)
    if start.startswith((b"\xfd7zXZ", b"\x5d\x00\x00")):
        return _Xz(stream)
    return stream


class _Xz(io.RawIOBase):
    """The bytes of an xz file, also of several joined ones; the standard library's reader has no limit of memory."""

    def __init__(self, stream: io.BufferedReader) -> None:
        self._stream = stream
        self._decoder = self._new()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            if self._decoder.eof:
                rest = (self._decoder.unused_data or self._stream.read(MIB)).lstrip(b"\0")
                if not rest:
                    return 0
                self._decoder = self._new()
                data = self._decoder.decompress(rest, len(buffer))
            elif self._decoder.needs_input:
                piece = self._stream.read(64 * 1024)
                if not piece:
                    raise EOFError("the compressed data ends early")
                data = self._decoder.decompress(piece, len(buffer))
            else:
                data = self._decoder.decompress(b"", len(buffer))
            if data:
                buffer[: len(data)] = data
                return len(data)

    @staticmethod
    def _new() -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(memlimit=MAX_DECODER_BYTES)
