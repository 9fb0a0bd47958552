"""The rows of the sources that are rehearsed, and how many rows the whole sources have."""

from __future__ import annotations

import posixpath
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from math import ceil
from typing import Any

from siclip.errors import UserError
from siclip_platform.datasets.importing.parts import ImportConfig
from siclip_platform.datasets.importing.sources.archive import BROKEN_ARCHIVE, Archive
from siclip_platform.datasets.importing.sources.find import ImportSource
from siclip_platform.datasets.importing.sources.part import SourcePart
from siclip_platform.datasets.importing.sources.tables import arrow_rows, parquet_layout
from siclip_platform.storage import as_path, filesystem_of
from siclip_platform.storage.listing import base_folder

PARTS = 4
"""Parts of a split that rows are taken from: first, last and between, because later files may differ."""
SHARDS = 6  # of the imported rows: the first warms up, the others are timed
LEAST_SHARE = 0.1
"""Of a few hundred rows the shares of whole jobs, such as 0.001, would be none."""


def sample_of(source: ImportSource, rows: int) -> ImportSource:
    """The first rows of a few parts of every split, about ``rows`` in total."""
    by_split: dict[str | None, list[SourcePart]] = defaultdict(list)
    for part in source.parts:
        by_split[part.split].append(part)
    chosen = [part for parts in by_split.values() for part in _spread(parts)]
    return replace(source, parts=chosen, rows_per_part=max(1, ceil(rows / len(chosen))))


def small_import(config: ImportConfig, sample: ImportSource) -> ImportConfig:
    """The settings of an import of a sample: larger shares of the splits that are drawn, and several small shards."""
    shares = {f"{split}_share": max(LEAST_SHARE, share) for split, share in config.shares.items()}
    shard_rows = ceil((sample.rows_per_part or 1) / max(1, SHARDS // len(sample.parts)))
    return config.model_validate(config.model_dump() | shares | {"shard_rows": shard_rows})


def _spread(parts: Sequence[SourcePart]) -> list[SourcePart]:
    count = min(PARTS, len(parts))
    last = len(parts) - 1
    return [parts[round(index * last / max(1, count - 1))] for index in range(count)]


def count_rows(source: ImportSource) -> int:
    """About how many rows a source has: counted in its largest file, and for the others by their bytes.

    Exact for lists and folders.

    Raises:
        UserError: the file that is counted cannot be read.
    """
    lists = sum(part.count for part in source.parts if part.layout == "list")
    folders = (part.files for part in source.parts if part.layout == "folder")
    exact = lists + sum(len({name.rpartition(".")[0] for name in files}) for files in folders)
    sizes = {(part.root, part.name): part for part in source.parts if part.layout not in ("list", "folder")}
    if not sizes:
        return exact
    largest = max(sizes.values(), key=lambda part: part.bytes)
    root = source.roots[largest.root]
    try:
        counted = _rows_of_file(root, largest)
    except BROKEN_ARCHIVE as error:
        raise UserError(
            f"{largest.name} of {root} cannot be counted: {error}; download it again or remove it"
        ) from None
    return exact + round(counted * sum(part.bytes for part in sizes.values()) / largest.bytes)


def _rows_of_file(root: str, part: SourcePart) -> int:
    filesystem, folder = filesystem_of(base_folder(as_path(root)))
    path = posixpath.join(folder, part.name)
    if part.layout == "parquet":
        return sum(parquet_layout(filesystem, path)[1])
    if part.layout == "arrow":
        return arrow_rows(filesystem, path)
    return _samples_in_archive(filesystem, path)


def _samples_in_archive(filesystem: Any, path: str) -> int:
    """Groups of consecutive members with the same name up to the first dot; their contents are not kept."""
    groups, before = 0, None
    with filesystem.open_input_stream(path, compression=None) as stream:
        for member in Archive(stream):
            if member.isdir():
                continue
            folder, base = posixpath.split(member.name)
            group = (folder, base.partition(".")[0])
            groups += group != before
            before = group
    return groups
