"""Samples from files with a common name: members of tar archives (WebDataset), or images with captions in folders."""

from __future__ import annotations

import json
import posixpath
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from siclip_platform.datasets.importing.sources.sample import (
    Caption,
    Reason,
    Rejection,
    SourceSample,
    captions_of,
    decode_text,
)
from siclip_platform.storage import READ_ERRORS
from siclip_platform.storage.filesystem import read_file

IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "jfif")
TEXTS = ("txt", "caption", "text")
CAPTION_KEYS = ("caption", "captions", "text", "txt")
MAX_MEMBER_BYTES = 256 * 2**20
BROKEN_ARCHIVE = (tarfile.TarError, zlib.error, EOFError, *READ_ERRORS)


@dataclass
class _Group:
    """Files with a common name: extension → bytes."""

    key: str
    files: dict[str, bytes] = field(default_factory=dict)
    rejected: Rejection | None = None


class _Header(tarfile.TarInfo):
    """Marks the archive when its end mark is read: tarfile accepts a truncated archive as a whole one."""

    @classmethod
    def fromtarfile(cls, archive: Any) -> Any:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            archive.ended = True
            raise


def tar_samples(filesystem: Any, path: str, source: str) -> Iterator[SourceSample]:
    """Yield the samples of a tar archive, in its order; consecutive members with a common name form a sample.

    One sample at a time is in memory. A truncated or damaged archive yields the samples before the damage, then a
    rejected one.
    """
    group: _Group | None = None
    count = 0
    try:
        with filesystem.open_input_stream(path, compression=None) as stream:
            archive = tarfile.open(fileobj=stream, mode="r|*", tarinfo=_Header)  # noqa: SIM115
            for member in archive:
                if member.isdir():
                    continue
                key, extension = _split(member.name)
                if group is not None and group.key != key:
                    yield _sample(group, source)
                    group = None
                group = group or _Group(key)
                _add(group, extension, archive, member)
                count += 1
            # Without this check a truncated archive would be imported as a shorter one.
            if not getattr(archive, "ended", False):
                raise tarfile.ReadError("its end mark is missing")
    except BROKEN_ARCHIVE as error:
        # The damage may be after a complete sample.
        if group is not None:
            last = _sample(group, source)
            if last.rejected is None:
                yield last
        detail = f"the archive is cut or damaged after {count} members: {error}"
        yield SourceSample(source, f"after {count} members", "", rejected=Rejection(Reason.DAMAGED_SOURCE, detail))
        return
    if group is not None:
        yield _sample(group, source)


def folder_samples(filesystem: Any, root: str, names: list[str]) -> Iterator[SourceSample]:
    """Yield the samples of files in a folder; files with a common stem form a sample."""
    group: _Group | None = None
    for name in names:
        key, _, extension = name.rpartition(".")
        if group is not None and group.key != key:
            yield _sample(group, group.key)
            group = None
        group = group or _Group(key)
        try:
            _put(group, extension.lower(), read_file(filesystem, posixpath.join(root, name), decompress=True))
        except READ_ERRORS as error:
            group.rejected = Rejection(Reason.DAMAGED_ROW, f"{name} cannot be read: {error}")
    if group is not None:
        yield _sample(group, group.key)


def _split(name: str) -> tuple[str, str]:
    """Split a name by WebDataset's rule: the extension begins at the first dot of the file's name."""
    folder, base = posixpath.split(name)
    stem, _, extension = base.partition(".")
    return posixpath.join(folder, stem), extension.lower()


def _add(group: _Group, extension: str, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
    if not member.isreg():
        group.rejected = Rejection(Reason.DAMAGED_ROW, f"member {member.name!r} is no file but a link or a device")
        return
    # Checked by the header, because a member is read into memory as a whole.
    if member.size > MAX_MEMBER_BYTES:
        detail = f"member {member.name!r} has {member.size} bytes, more than {MAX_MEMBER_BYTES}"
        group.rejected = Rejection(Reason.DECOMPRESSION_BOMB, detail)
        return
    file = archive.extractfile(member)
    _put(group, extension, file.read() if file else b"")


def _put(group: _Group, extension: str, data: bytes) -> None:
    if extension in group.files:
        group.rejected = Rejection(Reason.DAMAGED_ROW, f"there are two files {group.key}.{extension}")
    group.files[extension] = data


def _sample(group: _Group, source: str) -> SourceSample:
    files = group.files
    images = [name for name in IMAGES if name in files]
    image = files[images[0]] if images else None
    if len(images) > 1 and group.rejected is None:
        group.rejected = Rejection(
            Reason.DAMAGED_ROW, f"there are {' and '.join(f'{group.key}.{i}' for i in images)}"
        )
    captions: tuple[Caption, ...] = ()
    meta: dict[str, Any] = {}
    category = None
    rejected = group.rejected
    try:
        meta = _meta(files.get("json"))
        category = decode_text(files["cls"], "the class").strip() if "cls" in files else None
        captions = captions_of(_caption(files, meta))
    except Rejection as error:
        rejected = rejected or error
    if image is None and group.rejected is None:
        detail = f"there are only {', '.join(sorted(files)) or 'no files'}"
        rejected = Rejection(Reason.MISSING_IMAGE, detail)
    return SourceSample(source, group.key, group.key, image, captions, category, meta, rejected)


def _caption(files: dict[str, bytes], meta: dict[str, Any]) -> Any:
    for name in TEXTS:
        if name in files:
            return decode_text(files[name], f"the .{name}")
    return next((meta[key] for key in CAPTION_KEYS if meta.get(key) is not None), None)


def _meta(data: bytes | None) -> dict[str, Any]:
    if data is None:
        return {}
    try:
        value = json.loads(decode_text(data, "the .json"), parse_constant=str)  # NaN and Infinity are not JSON
    except (ValueError, RecursionError) as error:
        raise Rejection(Reason.DAMAGED_ROW, f"the .json is none: {error}") from None
    return value if isinstance(value, dict) else {"json": value}
