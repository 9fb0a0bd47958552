"""Finding the layout of a source, and cutting it into parts."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from siclip.errors import UserError
from siclip_platform.datasets.importing.sources.access import Access, check_files
from siclip_platform.datasets.importing.sources.columns import ColumnNames
from siclip_platform.datasets.importing.sources.limits import MAX_TEXT_BYTES
from siclip_platform.datasets.importing.sources.lists import (
    DELIMITERS,
    JSON_LINES,
    ListForm,
    read_header,
    rows_with_offsets,
)
from siclip_platform.datasets.importing.sources.members import IMAGES, TEXTS, first_reinforced
from siclip_platform.datasets.importing.sources.part import Layout, SourcePart, read_samples
from siclip_platform.datasets.importing.sources.patterns import Files, SplitPatterns, matching
from siclip_platform.datasets.importing.sources.splits import split_of
from siclip_platform.datasets.importing.sources.tables import arrow_names, parquet_layout
from siclip_platform.storage import READ_ERRORS, AnyPath, RemotePath, as_path, filesystem_of
from siclip_platform.storage.filesystem import read_file
from siclip_platform.storage.listing import base_folder

TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
LISTS = (*DELIMITERS, *JSON_LINES)
PEEKED_ROWS = 5
SUFFIXES: dict[Layout, tuple[str, ...]] = {
    "arrow": (".arrow",),
    "webdataset": TARS,
    "datacompdr": TARS,
    "parquet": (".parquet",),
    "list": LISTS,
    "folder": tuple(f".{extension}" for extension in IMAGES),
}


@dataclass(frozen=True)
class ImportSource:
    """A source cut into parts.

    Attributes:
        root: path or URI.
        layout: of its files.
        parts: one per task of the import.
        files: (path relative to its folder, bytes) of the files that are imported.
        access: what rows may name besides the files in the source's folder.
        rows_per_part: read only the first rows of each part; None: all.
        others: further folders; a part names its own by its index among `roots`.
    """

    root: str
    layout: Layout
    parts: list[SourcePart]
    files: Files
    access: Access = field(default_factory=Access)
    rows_per_part: int | None = None
    others: tuple[str, ...] = ()

    @property
    def roots(self) -> tuple[str, ...]:
        return (self.root, *self.others)

    @property
    def labels(self) -> tuple[str, ...]:
        """What tells the files of each root apart: the names of the folders; empty for a single one."""
        if not self.others:
            return ("",)
        names = [as_path(root).name or "root" for root in self.roots]
        unique = len(set(names)) == len(names)
        return tuple(name if unique else f"{number}-{name}" for number, name in enumerate(names))


def find_source(
    root: str,
    layout: Layout | None,
    columns: ColumnNames,
    rows: int,
    *,
    access: Access | None = None,
    keep_splits: bool = True,
    splits: SplitPatterns | None = None,
) -> ImportSource:
    """Find one source, see `find_sources`."""
    return find_sources([root], layout, columns, rows, access=access, keep_splits=keep_splits, splits=splits)


def find_sources(
    names: Sequence[str],
    layout: Layout | None,
    columns: ColumnNames,
    rows: int,
    *,
    access: Access | None = None,
    keep_splits: bool = True,
    splits: SplitPatterns | None = None,
) -> ImportSource:
    """Cut sources into parts of about ``rows`` rows; each tar or Arrow file is one part.

    Args:
        names: paths, URIs or glob patterns. Files of one folder are one source.
        layout: None: the first that has files, of: Hugging Face's Arrow files, tar archives (img2dataset puts Parquet
            files without images beside them), a list named metadata, Parquet, a list, images. Archives are those of
            DataCompDR only if this says so.
        columns: of tables and lists.
        rows: per part.
        access: what the source may name besides the files in its folder; default: nothing.
        keep_splits: keep the splits that the source names (see `splits`).
        splits: of files by their names; these splits precede all that the source names.

    Raises:
        UserError: there is nothing to import, or a table lacks the columns.
    """
    access, splits = access or Access(), splits or SplitPatterns(())
    folders: dict[str, Files] = {}
    for name in names:
        folder, found = matching(name)
        known = folders.setdefault(str(folder) if isinstance(folder, RemotePath) else str(folder.absolute()), [])
        known += [item for item in found if item not in known]
    parts: list[SourcePart] = []
    files: Files = []
    layouts: dict[Layout, None] = {}
    for number, (root, found) in enumerate(folders.items()):
        shown = _absolute(names[0]) if len(names) == 1 else root
        chosen, cut = _parts(root, shown, found, layout, columns, rows, access, splits)
        parts += [_with_split(part, keep_splits, splits).model_copy(update={"root": number}) for part in cut]
        files += chosen
        layouts.update(dict.fromkeys(part.layout for part in cut))
    splits.check_used()
    # A single file is known by its own name, not by its folder's.
    roots = [_absolute(names[0])] if len(names) == 1 and as_path(names[0]).is_file() else list(folders)
    if not parts:
        raise UserError(f"{roots[0]} contains no rows: name another source")
    return ImportSource(roots[0], next(iter(layouts)), parts, files, access, others=tuple(roots[1:]))


def _absolute(name: str) -> str:
    return name if "://" in name else str(Path(name).absolute())


def _parts(
    root: str,
    shown: str,
    found: Files,
    layout: Layout | None,
    columns: ColumnNames,
    rows: int,
    access: Access,
    splits: SplitPatterns,
) -> tuple[Files, list[SourcePart]]:
    """Return the files of a folder that are imported, and their parts."""
    folder = as_path(root)
    layout = layout or _layout(shown, found)
    chosen = [(name, size) for name, size in found if name.lower().endswith(SUFFIXES[layout])]
    # A list named metadata describes the images beside it; other lists are then something else.
    if layout == "list" and len(chosen) > 1:
        chosen = [item for item in chosen if _is_metadata(item[0])] or chosen
    if not chosen:
        raise UserError(f"{shown} contains no {' or '.join(SUFFIXES[layout])} file: name another source or --layout")
    if layout != "folder":
        check_files(folder, [name for name, _ in chosen], access)
    if layout in ("webdataset", "datacompdr"):
        return chosen, [SourcePart(layout=layout, name=name, bytes=size) for name, size in chosen]
    if layout == "folder":
        return chosen, _folder_parts(found, rows, splits)
    if layout == "parquet":
        return chosen, _parquet_parts(folder, chosen, columns, rows)
    if layout == "arrow":
        return chosen, _arrow_parts(folder, found, chosen, columns)
    return chosen, [part for item in chosen for part in _list_parts(folder, *item, columns, rows)]


def _with_split(part: SourcePart, keep: bool, splits: SplitPatterns) -> SourcePart:
    """Return a part with its split: that of the patterns, or else that which the name of its file tells."""
    given = splits.of(part.name or _named(part.files))
    if given is None and keep:
        return part.model_copy(update={"split": part.split or split_of(part.name)})
    columns = part.columns.model_copy(update={"split": None})
    return part.model_copy(update={"split": given, "keep_splits": False, "columns": columns})


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


def _folder_parts(files: Files, rows: int, splits: SplitPatterns) -> list[SourcePart]:
    """Keep files together that differ only in their extension; a part has files of one split of the patterns."""
    extensions = (*IMAGES, *TEXTS, "json", "cls")
    groups: dict[str, list[tuple[str, int]]] = {}
    for name, size in files:
        stem, dot, extension = name.rpartition(".")
        if dot and extension.lower() in extensions:
            groups.setdefault(stem, []).append((name, size))
    by_split: dict[str | None, list[str]] = {}
    for key in sorted(groups):
        by_split.setdefault(splits.of(_named([name for name, _ in groups[key]])), []).append(key)
    parts = []
    for keys in by_split.values():
        for first in range(0, len(keys), rows):
            items = [item for key in keys[first : first + rows] for item in groups[key]]
            names, sizes = zip(*items, strict=True)
            parts.append(SourcePart(layout="folder", name="", bytes=sum(sizes), first=first, files=names))
    return parts


def _named(files: Sequence[str]) -> str:
    """Return the first image of some files, whose name decides about the split."""
    return next((name for name in files if name.lower().endswith(SUFFIXES["folder"])), files[0])


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
    states = {name: size for name, size in files if posixpath.basename(name) == "state.json"}
    splits = any(name == "dataset_dict.json" for name, _ in files)
    listed: dict[str, set[str]] = {}
    parts = []
    for name, size in chosen:
        state = posixpath.join(posixpath.dirname(name), "state.json")
        if state in states:
            if state not in listed:
                listed[state] = _data_files(folder, state, states[state])
            if posixpath.basename(name) not in listed[state]:
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


def _data_files(folder: AnyPath, name: str, size: int) -> set[str]:
    """Return the names of the data files that a ``state.json`` lists.

    Raises:
        UserError: it is none, or orders its rows by an indices file.
    """
    shown = folder / name
    remedy = "save the dataset again with save_to_disk, or remove this file to read all .arrow files beside it"
    if size > MAX_TEXT_BYTES:
        raise UserError(f"{shown} has {size} bytes, more than a state.json of Hugging Face datasets: {remedy}")
    try:
        state = json.loads(read_file(*filesystem_of(shown), decompress=True))
        if state.get("_indices_data_files"):
            raise UserError(
                f"{shown} orders its rows by an indices file: call flatten_indices() and save the dataset again"
            )
        return {str(file["filename"]) for file in state.get("_data_files") or ()}
    except UserError:
        raise
    except (RecursionError, AttributeError, TypeError, KeyError, *READ_ERRORS) as error:
        problem = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise UserError(f"{shown} is no state.json of Hugging Face datasets ({problem}): {remedy}") from None


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


def first_reinforcement(source: ImportSource) -> tuple[str, Mapping[str, bytes]] | None:
    """Return name and files of the first sample of DataCompDR in a source of archives; None: its first is none."""
    part = source.parts[0]
    filesystem, folder = filesystem_of(base_folder(as_path(source.roots[part.root])))
    if not part.name.lower().endswith(TARS):
        return None
    files = first_reinforced(filesystem, posixpath.join(folder, part.name))
    return None if files is None else (part.name, files)


def as_reinforced(source: ImportSource) -> ImportSource:
    """Return a source of archives as one of DataCompDR."""
    parts = [part.model_copy(update={"layout": "datacompdr"}) for part in source.parts]
    return replace(source, layout="datacompdr", parts=parts)


def tells_splits(source: ImportSource) -> bool:
    """Return whether a source names the split of its files, or of its first rows."""
    if any(part.split or part.columns.split for part in source.parts):
        return True
    part = source.parts[0]
    if not part.keep_splits:
        return True
    first = islice(read_samples(source.roots[part.root], part, source.access), PEEKED_ROWS)
    return any(sample.split or sample.folder_split for sample in first)
