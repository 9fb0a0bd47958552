"""What a source is, and its pieces."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from siclip.errors import UserError
from siclip_platform.datasets.importing.sources.columns import ColumnNames
from siclip_platform.datasets.importing.sources.lists import DELIMITERS, JSON_LINES, read_header, rows_with_offsets
from siclip_platform.datasets.importing.sources.members import IMAGES, TEXTS
from siclip_platform.datasets.importing.sources.piece import Layout, SourcePart
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
    """A source cut into pieces."""

    root: str
    layout: Layout
    pieces: list[SourcePart]
    files: Files


def find_source(root: str, layout: Layout | None, columns: ColumnNames, rows: int) -> ImportSource:
    """Cut what lies at ``root`` (a path or a URI) into pieces of about ``rows`` rows; tar and Arrow files stay whole.

    ``layout``: None for the one that the files tell: Hugging Face's Arrow files, else tar archives (beside which
    img2dataset puts Parquet files without images), else a list named metadata, else Parquet, else one list, else
    images.

    Raises:
        UserError: there is nothing to import, or a table lacks the columns.
    """
    root = root if "://" in root else str(Path(root).absolute())
    where = as_path(root)
    found = list_files(where)
    folder = base_folder(where)
    layout = layout or _layout(root, found)
    chosen = [(name, size) for name, size in found if name.lower().endswith(SUFFIXES[layout])]
    if layout == "list" and len(chosen) > 1:
        chosen = [item for item in chosen if _is_metadata(item[0])] or chosen
    if not chosen:
        raise UserError(f"{root} holds no {' or '.join(SUFFIXES[layout])} file: name another source or --layout")
    if layout == "webdataset":
        pieces = [SourcePart(layout=layout, name=name, bytes=size) for name, size in chosen]
    elif layout == "folder":
        pieces = _folder_pieces(found, rows)
    elif layout == "parquet":
        pieces = _parquet_pieces(folder, chosen, columns, rows)
    elif layout == "arrow":
        pieces = _arrow_pieces(folder, found, chosen, columns)
    else:
        pieces = [piece for item in chosen for piece in _list_pieces(folder, *item, columns, rows)]
    if not pieces:
        raise UserError(f"{root} holds no rows: name another source")
    return ImportSource(root, layout, pieces, chosen)


def _layout(root: str, files: Files) -> Layout:
    present = [key for key, suffixes in SUFFIXES.items() if any(n.lower().endswith(suffixes) for n, _ in files)]
    if "list" in present and "webdataset" not in present and any(_is_metadata(name) for name, _ in files):
        return "list"
    if not present:
        known = ", ".join(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)
        raise UserError(f"nothing to import in {root}: it holds no file that ends in one of {known}")
    return present[0]


def _is_metadata(name: str) -> bool:
    return posixpath.basename(name).startswith("metadata.") and name.lower().endswith(LISTS)


def _folder_pieces(files: Files, rows: int) -> list[SourcePart]:
    """Files that differ in the extension alone stay together."""
    wanted = (*IMAGES, *TEXTS, "json", "cls")
    groups: dict[str, list[tuple[str, int]]] = {}
    for name, size in files:
        stem, dot, extension = name.rpartition(".")
        if dot and extension.lower() in wanted:
            groups.setdefault(stem, []).append((name, size))
    keys = sorted(groups)
    pieces = []
    for first in range(0, len(keys), rows):
        part = [item for key in keys[first : first + rows] for item in groups[key]]
        names, sizes = zip(*part, strict=True)
        pieces.append(SourcePart(layout="folder", name="", bytes=sum(sizes), first=first, files=names))
    return pieces


def _parquet_pieces(folder: AnyPath, chosen: Files, columns: ColumnNames, rows: int) -> list[SourcePart]:
    """A file whose footer is damaged is a piece without rows, for the ledger."""
    pieces: list[SourcePart] = []
    damage = ""
    for name, size in chosen:
        try:
            names, groups = parquet_layout(*filesystem_of(folder / name))
        except READ_ERRORS as error:
            damage = f"{name}: {error}"
            pieces.append(SourcePart(layout="parquet", name=name, bytes=size))
            continue
        found = columns.found_in(names, name)
        for start, count, first in _runs(groups, rows):
            pieces.append(
                SourcePart(
                    layout="parquet", name=name, bytes=size, start=start, count=count, first=first, columns=found
                )
            )
    if damage and not any(piece.count for piece in pieces):
        raise UserError(f"no Parquet file of {folder} can be read; {damage}")
    return pieces


def _runs(groups: list[int], rows: int) -> Iterator[tuple[int, int, int]]:
    """(first group, groups, rows before) of runs of row groups that hold ``rows`` rows or just more."""
    start = held = before = 0
    for index, count in enumerate(groups, 1):
        held += count
        if held >= rows or index == len(groups):
            yield start, index - start, before
            start, before, held = index, before + held, 0


def _arrow_pieces(folder: AnyPath, files: Files, chosen: Files, columns: ColumnNames) -> list[SourcePart]:
    """Of a saved ``DatasetDict`` every folder is a split of that name."""
    states = {name for name, _ in files if posixpath.basename(name) == "state.json"}
    splits = any(name == "dataset_dict.json" for name, _ in files)
    pieces = []
    for name, size in chosen:
        state = posixpath.join(posixpath.dirname(name), "state.json")
        if state in states:
            text = json.loads(read_file(*filesystem_of(folder / state), decompress=True))
            if text.get("_indices_data_files"):
                raise UserError(f"{state} orders its rows by another file: flatten_indices() and save it again")
            if posixpath.basename(name) not in {file["filename"] for file in text.get("_data_files", [])}:
                continue  # what map and filter left beside the data
        try:
            names = arrow_names(*filesystem_of(folder / name))
        except READ_ERRORS:
            names = []
        found = columns.found_in(names, name) if names else columns
        split = name.split("/")[0] if splits else None
        pieces.append(SourcePart(layout="arrow", name=name, bytes=size, columns=found, split=split))
    return pieces


def _list_pieces(folder: AnyPath, name: str, size: int, columns: ColumnNames, rows: int) -> list[SourcePart]:
    filesystem, path = filesystem_of(folder / name)
    with filesystem.open_input_file(path) as stream:
        header, offset = read_header(stream, name)
    found = columns.found_in(header, name)
    pieces: list[SourcePart] = []
    with filesystem.open_input_file(path) as stream:
        stream.seek(offset)
        start = end = offset
        held = first = 0

        def piece() -> SourcePart:
            return SourcePart(layout="list", name=name, bytes=size, start=start, count=held, first=first,
                         header=header, columns=found)  # fmt: skip

        for consumed, _ in rows_with_offsets(stream, name, header):
            end, held = offset + consumed, held + 1
            if held == rows:
                pieces.append(piece())
                start, first, held = end, first + held, 0
        return [*pieces, piece()] if held else pieces
