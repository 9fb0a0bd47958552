"""Samples from files with a common name: members of tar archives (WebDataset), or images with captions in folders."""

from __future__ import annotations

import json
import posixpath
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from siclip_platform.datasets.importing.sources.access import Reader
from siclip_platform.datasets.importing.sources.archive import BROKEN_ARCHIVE, Archive
from siclip_platform.datasets.importing.sources.columns import plain, unique_keys
from siclip_platform.datasets.importing.sources.limits import (
    MAX_EMBEDDING_BYTES,
    MAX_FILE_BYTES,
    MAX_SAMPLE_FILES,
    MAX_TEXT_BYTES,
)
from siclip_platform.datasets.importing.sources.reinforced import ARRAYS, is_reinforced, reinforcement_of
from siclip_platform.datasets.importing.sources.sample import (
    Caption,
    Reason,
    Rejection,
    SourceSample,
    captions_of,
    decode_text,
)
from siclip_platform.datasets.importing.sources.splits import split_of
from siclip_platform.storage import READ_ERRORS

IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "jfif")
TEXTS = ("txt", "caption", "text")
SIDE = (*TEXTS, "json", "cls")
CAPTION_KEYS = ("caption", "captions", "text", "txt")
MAX_WAITING = 10_000  # incomplete samples of an archive that wait for their other members
INCOMPLETE = (Reason.MISSING_IMAGE, Reason.MISSING_CAPTION)


@dataclass
class _Group:
    """Files with a common name: extension → bytes. Files of other kinds are named and have no bytes.

    With ``reinforced`` the embeddings of DataCompDR are of the read kinds.
    """

    key: str
    reinforced: bool = False
    files: dict[str, bytes] = field(default_factory=dict)
    rejected: Rejection | None = None
    size: int = 0

    def room(self, name: str, extension: str, size: int) -> bool:
        """Return whether a file of ``size`` bytes is to be read. It is checked before anything is read."""
        if len(self.files) >= MAX_SAMPLE_FILES:
            detail = f"more than {MAX_SAMPLE_FILES} files are named {self.key!r} up to the first dot"
            self.rejected = Rejection(Reason.DAMAGED_ROW, detail)
            return False
        kind = extension.rpartition(".")[2]
        arrays = self.reinforced and extension in ARRAYS
        if kind not in (*IMAGES, *SIDE) and not arrays:
            self.files.setdefault(extension, b"")
            return False
        most = MAX_TEXT_BYTES if kind in SIDE else MAX_EMBEDDING_BYTES if arrays else MAX_FILE_BYTES
        if size > most:
            detail = f"{name!r} has {size} bytes, more than {most}"
        elif self.size + size > MAX_FILE_BYTES:
            detail = f"the files of {self.key!r} have more than {MAX_FILE_BYTES} bytes"
        else:
            return True
        self.rejected = Rejection(Reason.DECOMPRESSION_BOMB, detail)
        return False

    def put(self, extension: str, data: bytes) -> None:
        if extension in self.files:
            self.rejected = Rejection(Reason.DAMAGED_ROW, f"there are two files {self.key}.{extension}")
        self.files[extension] = data
        self.size += len(data)


def tar_samples(filesystem: Any, path: str, source: str, *, reinforced: bool = False) -> Iterator[SourceSample]:
    """Yield the samples of a tar archive; consecutive members with a common name form a sample, as in webdataset.

    With ``reinforced`` each has the `Reinforcement` of DataCompDR, or is rejected.

    One sample at a time is in memory. A truncated or damaged archive yields the samples before the damage, then a
    rejected one. A sample without image or caption is yielded at the end, because later members may tell why: if they
    have its name, the archive is not grouped by sample.
    """
    waiting: dict[str, SourceSample] = {}

    def release(most: int) -> Iterator[SourceSample]:
        while len(waiting) > most:
            yield waiting.pop(next(iter(waiting)))

    for sample in _tar_samples(filesystem, path, source, reinforced):
        if sample.rejected is None or sample.rejected.reason not in INCOMPLETE:
            if sample.rejected is not None and sample.rejected.reason is Reason.DAMAGED_SOURCE:
                yield from release(0)
            yield sample
            continue
        earlier = waiting.pop(sample.id, None)
        if earlier is None:
            waiting[sample.id] = sample.without_image()
            yield from release(MAX_WAITING)
            continue
        detail = f"other members named {sample.id!r} stand elsewhere in the archive: write it sorted by name"
        for part in (earlier, sample):
            yield replace(part, rejected=Rejection(Reason.SCATTERED, detail))
    yield from release(0)


def first_reinforced(filesystem: Any, path: str) -> Mapping[str, bytes] | None:
    """Return the files of the first sample of a tar archive, if they are those of DataCompDR."""
    group: _Group | None = None
    try:
        with filesystem.open_input_stream(path, compression=None) as stream:
            archive = Archive(stream)
            for member in archive:
                key, extension = split_name(member.name)
                if member.isdir() or not extension:
                    continue
                if group is not None and group.key != key:
                    break
                group = group or _Group(key, reinforced=True)
                _add(group, extension, archive, member)
    except BROKEN_ARCHIVE:
        # The import says what is wrong with it.
        pass
    return group.files if group is not None and is_reinforced(group.files) else None


def _tar_samples(filesystem: Any, path: str, source: str, reinforced: bool) -> Iterator[SourceSample]:
    group: _Group | None = None
    archive: Archive | None = None
    try:
        with filesystem.open_input_stream(path, compression=None) as stream:
            archive = Archive(stream)
            for member in archive:
                key, extension = split_name(member.name)
                if member.isdir() or not extension:
                    continue
                if group is not None and group.key != key:
                    yield from _samples(group, source)
                    group = None
                group = group or _Group(key, reinforced)
                _add(group, extension, archive, member)
    except BROKEN_ARCHIVE as error:
        # The damage may be after a complete sample.
        if group is not None:
            yield from (sample for sample in _samples(group, source) if sample.rejected is None)
        count = archive.count if archive else 0
        detail = f"the archive is cut or damaged after {count} members: {error}"
        yield SourceSample(source, f"after {count} members", "", rejected=Rejection(Reason.DAMAGED_SOURCE, detail))
        return
    if group is not None:
        yield from _samples(group, source)


def folder_samples(reader: Reader, names: list[str]) -> Iterator[SourceSample]:
    """Yield the samples of files in the source's folder; files with a common stem form a sample."""
    group: _Group | None = None
    for name in names:
        key, _, extension = name.rpartition(".")
        if group is not None and group.key != key:
            yield _sample(group, group.key)
            group = None
        group = group or _Group(key)
        try:
            data = reader.read(reader.locate(posixpath.basename(name), name))
            if group.room(name, extension.lower(), len(data)):
                group.put(extension.lower(), data)
        except Rejection as refused:
            group.rejected = refused
        except READ_ERRORS as error:
            group.rejected = Rejection(Reason.DAMAGED_ROW, f"{name} cannot be read: {error}")
    if group is not None:
        yield _sample(group, group.key)


def split_name(name: str) -> tuple[str, str]:
    """Split a name by WebDataset's rule: the extension begins at the first dot of the file's name.

    The extension is empty for what is no part of a sample: names without a dot, hidden files (such as ``._a.jpg``,
    which macOS adds for each file), and WebDataset's own metadata.

    Args:
        name: of a member of an archive.

    Returns:
        The name up to the first dot, with its folder, and the extension in lower case.
    """
    folder, base = posixpath.split(name)
    stem, _, extension = base.partition(".")
    first = name.partition("/")[0]
    if (
        not stem
        or "__MACOSX" in folder.split("/")
        or (first.startswith("__") and first.endswith("__") and len(first) > 3)
    ):
        return name, ""
    return posixpath.join(folder, stem), extension.lower()


def _add(group: _Group, extension: str, archive: Archive, member: tarfile.TarInfo) -> None:
    if not member.isreg():
        group.rejected = Rejection(Reason.DAMAGED_ROW, f"member {member.name!r} is no file but a link or a device")
    elif group.room(member.name, extension, member.size):
        group.put(extension, archive.read(member))


def _samples(group: _Group, source: str) -> Iterator[SourceSample]:
    """Yield the samples of a group.

    Names with further dots, such as ``a.1.jpg``, are those of several samples, unless an image has the plain name:
    then the others are further files of its sample, such as ``a.depth.png``.
    """
    if group.rejected or any(name in group.files for name in IMAGES):
        yield _sample(group, source)
        return
    groups: dict[str, _Group] = {}
    for extension, data in group.files.items():
        stem, dot, kind = extension.rpartition(".")
        key = f"{group.key}{dot}{stem}"
        groups.setdefault(key, _Group(key, group.reinforced)).put(kind, data)
    if any(name in part.files for part in groups.values() for name in IMAGES):
        yield from (_sample(part, source) for part in groups.values())
    else:
        yield _sample(group, source)


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
    reinforcement = None
    try:
        values = _json(files.get("json"))
        meta = plain(values)
        if "url.txt" in files:
            meta.setdefault("url", decode_text(files["url.txt"], "the .url.txt").strip())
        category = decode_text(files["cls"], "the class").strip() if "cls" in files else None
        captions = captions_of(_caption(files, values))
        if group.reinforced and rejected is None:
            reinforcement = reinforcement_of(files, values, len(captions))
    except RecursionError:
        rejected = rejected or Rejection(Reason.DAMAGED_ROW, "the .json is nested too deeply")
    except Rejection as error:
        if error.reason is Reason.MISSING_CAPTION and not {*SIDE} & {*files}:
            error = Rejection(error.reason, f"there are only {', '.join(sorted(files)[:20])}")
        rejected = rejected or error
    if image is None and group.rejected is None:
        detail = f"there are only {', '.join(sorted(files)[:20]) or 'no files'}"
        rejected = Rejection(Reason.MISSING_IMAGE, detail)
    split = split_of(group.key, folders_only=True)
    return SourceSample(
        source,
        group.key,
        group.key,
        image,
        captions,
        category,
        meta,
        rejected,
        folder_split=split,
        reinforcement=reinforcement,
    )


def _caption(files: dict[str, bytes], values: dict[str, Any]) -> Any:
    for name in TEXTS:
        if name in files:
            return decode_text(files[name], f"the .{name}")
    return next((values[key] for key in CAPTION_KEYS if values.get(key) is not None), None)


def _json(data: bytes | None) -> dict[str, Any]:
    if data is None:
        return {}
    try:
        value = json.loads(decode_text(data, "the .json"), object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise Rejection(Reason.DAMAGED_ROW, f"the .json is none: {error}") from None
    return value if isinstance(value, dict) else {"json": value}
