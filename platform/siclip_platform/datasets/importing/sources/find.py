"""Finding the layout of a source, and cutting it into parts."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from siclip.errors import UserError
from siclip_platform.datasets.importing.sources.access import Access, check_files
from siclip_platform.datasets.importing.sources.columns import ColumnNames
from siclip_platform.datasets.importing.sources.lists import (
    DELIMITERS,
    JSON_LINES,
    ListForm,
    read_header,
    rows_with_offsets,
)
from siclip_platform.datasets.importing.sources.members import IMAGES, TEXTS
from siclip_platform.datasets.importing.sources.part import Layout, SourcePart
from siclip_platform.datasets.importing.sources.splits import split_of
from siclip_platform.datasets.importing.sources.tables import arrow_names, parquet_layout
from siclip_platform.storage import READ_ERRORS, AnyPath, as_path, filesystem_of
from siclip_platform.storage.filesystem import read_file
from siclip_platform.storage.listing import base_folder, list_files

TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
LISTS = (*DELIMITERS, *JSON_LINES)
SUFFIXES: dict[Layout, tuple[str, ...]] = {
    "arrow": (".arrow",),
    "webdataset": TARS,
    "parquet": (".parquet",),
    "list": LISTS,
    "folder": tuple(f".{extension}" for extension in IMAGES),
}
Files = list[tuple[str, int]]


@dataclass(frozen=True)
class ImportSource:
    """A source cut into parts.

    Attributes:
        root: path or URI.
        layout: of its files.
        parts: one per task of the import.
        files: (path relative to the source, bytes) of the files that are imported.
        access: what rows may name besides the files in the source's folder.
    """

    root: str
    layout: Layout
    parts: list[SourcePart]
    files: Files
    access: Access = field(default_factory=Access)


def find_source(
    root: str,
    layout: Layout | None,
    columns: ColumnNames,
    rows: int,
    *,
    access: Access | None = None,
    keep_splits: bool = True,
) -> ImportSource:
    """Cut a source into parts of about ``rows`` rows; each tar or Arrow file is one part.

    Args:
        root: path or URI.
        layout: None: the first that has files, of: Hugging Face's Arrow files, tar archives (img2dataset puts Parquet
            files without images beside them), a list named metadata, Parquet, a list, images.
        columns: of tables and lists.
        rows: per part.
        access: what the source may name besides the files in its folder; default: nothing.
        keep_splits: keep the splits that the source names (see `splits`).

    Raises:
        UserError: there is nothing to import, or a table lacks the columns.
    """
    root = root if "://" in root else str(Path(root).absolute())
    path = as_path(root)
    found = list_files(path)
    folder = base_folder(path)
    access = access or Access()
    layout = layout or _layout(root, found)
    chosen = [(name, size) for name, size in found if name.lower().endswith(SUFFIXES[layout])]
    # A list named metadata describes the images beside it; other lists are then something else.
    if layout == "list" and len(chosen) > 1:
        chosen = [item for item in chosen if _is_metadata(item[0])] or chosen
    if not chosen:
        raise UserError(f"{root} contains no {' or '.join(SUFFIXES[layout])} file: name another source or --layout")
    if layout != "folder":
        check_files(folder, [name for name, _ in chosen], access)
    if layout == "webdataset":
        parts = [SourcePart(layout=layout, name=name, bytes=size) for name, size in chosen]
    elif layout == "folder":
        parts = _folder_parts(found, rows)
    elif layout == "parquet":
        parts = _parquet_parts(folder, chosen, columns, rows)
    elif layout == "arrow":
        parts = _arrow_parts(folder, found, chosen, columns)
    else:
        parts = [part for item in chosen for part in _list_parts(folder, *item, columns, rows)]
    parts = [_with_split(part, keep_splits) for part in parts]
    if not parts:
        raise UserError(f"{root} contains no rows: name another source")
    return ImportSource(root, layout, parts, chosen, access)


def _with_split(part: SourcePart, keep: bool) -> SourcePart:
    if keep:
        return part.model_copy(update={"split": part.split or split_of(part.name)})
    columns = part.columns.model_copy(update={"split": None})
    return part.model_copy(update={"split": None, "keep_splits": False, "columns": columns})


def _layout(root: str, files: Files) -> Layout:
    present = [key for key, suffixes in SUFFIXES.items() if any(n.lower().endswith(suffixes) for n, _ in files)]
    if "list" in present and "webdataset" not in present and any(_is_metadata(name) for name, _ in files):
        return "list"
    if not present:
        known = ", ".join(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)
        raise UserError(f"nothing to import in {root}: no file has one of the extensions {known}")
    return present[0]


def _is_metadata(name: str) -> bool:
    return posixpath.basename(name).startswith("metadata.") and name.lower().endswith(LISTS)


def _folder_parts(files: Files, rows: int) -> list[SourcePart]:
    """Keep files together that differ only in their extension."""
    extensions = (*IMAGES, *TEXTS, "json", "cls")
    groups: dict[str, list[tuple[str, int]]] = {}
    for name, size in files:
        stem, dot, extension = name.rpartition(".")
        if dot and extension.lower() in extensions:
            groups.setdefault(stem, []).append((name, size))
    keys = sorted(groups)
    parts = []
    for first in range(0, len(keys), rows):
        items = [item for key in keys[first : first + rows] for item in groups[key]]
        names, sizes = zip(*items, strict=True)
        parts.append(SourcePart(layout="folder", name="", bytes=sum(sizes), first=first, files=names))
    return parts


def _parquet_parts(folder: AnyPath, chosen: Files, columns: ColumnNames, rows: int) -> list[SourcePart]:
    """A file with a damaged footer becomes a part without rows, so that the ledger lists it."""
    parts: list[SourcePart] = []
    damage = ""
    for name, size in chosen:
        try:
            names, groups = parquet_layout(*filesystem_of(folder / name))
        except READ_ERRORS as error:
            damage = f"{name}: {error}"
            parts.append(SourcePart(layout="parquet", name=name, bytes=size))
            continue
        found = columns.found_in(names, name)
        for start, count, first in _runs(groups, rows):
            parts.append(
                SourcePart(
                    layout="parquet", name=name, bytes=size, start=start, count=count, first=first, columns=found
                )
            )
    if damage and not any(part.count for part in parts):
        raise UserError(f"no Parquet file of {folder} can be read; {damage}")
    return parts


def _runs(groups: list[int], rows: int) -> Iterator[tuple[int, int, int]]:
    """Yield (first group, groups, rows before) of runs of row groups with at least ``rows`` rows."""
    start = held = before = 0
    for index, count in enumerate(groups, 1):
        held += count
        if held >= rows or index == len(groups):
            yield start, index - start, before
            start, before, held = index, before + held, 0


def _arrow_parts(folder: AnyPath, files: Files, chosen: Files, columns: ColumnNames) -> list[SourcePart]:
    """Each folder of a saved ``DatasetDict`` is a split."""
    states = {name for name, _ in files if posixpath.basename(name) == "state.json"}
    splits = any(name == "dataset_dict.json" for name, _ in files)
    parts = []
    for name, size in chosen:
        state = posixpath.join(posixpath.dirname(name), "state.json")
        if state in states:
            text = json.loads(read_file(*filesystem_of(folder / state), decompress=True))
            if text.get("_indices_data_files"):
                raise UserError(
                    f"{state} orders its rows by an indices file: call flatten_indices() and save the dataset again"
                )
            if posixpath.basename(name) not in {file["filename"] for file in text.get("_data_files", [])}:
                # Caches of map and filter beside the data.
                continue
        try:
            names = arrow_names(*filesystem_of(folder / name))
        except READ_ERRORS:
            names = []
        found = columns.found_in(names, name) if names else columns
        split = name.split("/")[0] if splits else None
        parts.append(SourcePart(layout="arrow", name=name, bytes=size, columns=found, split=split))
    return parts


def _list_parts(folder: AnyPath, name: str, size: int, columns: ColumnNames, rows: int) -> list[SourcePart]:
    filesystem, path = filesystem_of(folder / name)
    with filesystem.open_input_file(path) as stream:
        header, delimiter, offset = read_header(stream, name)
    found = columns.found_in(header, name)
    form = ListForm(() if name.lower().endswith(JSON_LINES) else header, delimiter, found.image)
    parts: list[SourcePart] = []
    with filesystem.open_input_file(path) as stream:
        stream.seek(offset)
        start = end = offset
        held = first = 0

        def part() -> SourcePart:
            span = {"start": start, "count": held, "first": first}
            described = {"header": form.header, "delimiter": delimiter, "columns": found}
            return SourcePart(layout="list", name=name, bytes=size, **described, **span)

        for consumed, _ in rows_with_offsets(stream, form):
            end, held = offset + consumed, held + 1
            if held == rows:
                parts.append(part())
                start, first, held = end, first + held, 0
        return [*parts, part()] if held else parts
