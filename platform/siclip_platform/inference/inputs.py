"""Sources to embed: a folder of images, a text file, or Parquet with images or texts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from siclip.errors import UserError
from siclip_platform.datasets.manifest import MANIFEST, open_dataset
from siclip_platform.storage.text_files import read_lines

READ = ("jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "pgm", "pbm", "jp2", "j2k")
REFUSED = ("avif", "heic", "heif", "jxl")
"""Images too, but of formats that are not read: they are rejected by name instead of being passed over."""
IMAGE_SUFFIXES = frozenset(f".{suffix}" for suffix in (*READ, *REFUSED))
IMAGE_COLUMNS = ("image", "jpg", "image_bytes")
TEXT_COLUMNS = ("text", "caption", "txt")
ID_COLUMNS = ("id", "key", "uid")
Modality = Literal["image", "text"]
# indexes of earlier versions have no column
IN_PARQUET = re.compile(r"(?P<file>.*\.parquet)#(?P<group>\d+):(?P<row>\d+)(:(?P<column>.*))?", re.DOTALL)


@dataclass(frozen=True)
class InputPart:
    """The rows that one task reads: image files of a folder, lines of a text file, or a row group of a Parquet file.

    Attributes:
        kind: what the rows are.
        files: image files relative to ``root``, or one text file.
        parquet: a Parquet file, in place of ``files``.
        row_group: index of the row group in it.
        column: the column with images or texts.
        id_column: the column with ids; empty if there is none.
        root: the folder of ``files``.
    """

    kind: Modality
    files: tuple[str, ...] = ()
    parquet: str = ""
    row_group: int = 0
    column: str = ""
    id_column: str = ""
    root: str = ""


@dataclass(frozen=True)
class InputRow:
    """One input.

    Attributes:
        id: unique within the source.
        location: an absolute path, ``FILE:LINE`` of a text file, or ``FILE#GROUP:ROW:COLUMN`` of a Parquet file.
        value: the encoded image or the text; None for a null in Parquet.
    """

    id: str
    location: str
    value: Any


def find_parts(source: Path, kind: Modality | None, column: str | None, size: int) -> list[InputPart]:
    """Split a source into parts.

    Args:
        source: a folder of images, a text file, or Parquet.
        kind: what to embed; None if the source has only one of the two.
        column: the Parquet column; None for the first known name.
        size: image files per part.

    Raises:
        UserError: there is nothing to embed, or a Parquet file has no such column.
    """
    if not source.exists():
        raise UserError(f"{source} does not exist: name a folder of images, a Parquet file or folder, or a .txt file")
    # locations are read later, from another working folder
    source = source.absolute()
    if source.is_file() and source.suffix == ".txt":
        return [InputPart("text", files=(str(source),), root=str(source.parent))]
    tables = _tables(source)
    if tables:
        return [part for table in tables for part in _row_groups(table, kind, column)]
    images = sorted(p for p in source.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES) if source.is_dir() else []
    if not images:
        raise UserError(
            f"nothing to embed in {source}: it contains neither images ({', '.join(READ)}) nor "
            "Parquet files, and is not a .txt file with one text per line"
        )
    names = [str(path.relative_to(source)) for path in images]
    return [
        InputPart("image", files=tuple(names[i : i + size]), root=str(source)) for i in range(0, len(names), size)
    ]


def _tables(source: Path) -> list[Path]:
    """A Parquet file; the shards that a dataset's manifest lists; or all Parquet files of a folder."""
    if source.is_file():
        return [source] if source.suffix == ".parquet" else []
    if (source / MANIFEST).is_file():
        dataset = open_dataset(source)
        return [source / entry.path for split in dataset.split_names for entry in dataset.entries(split)]
    return sorted(source.rglob("*.parquet"))


def _row_groups(table: Path, kind: Modality | None, column: str | None) -> Iterator[InputPart]:
    try:
        schema, groups = pq.read_schema(table), pq.read_metadata(table).num_row_groups
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{table} is not a readable Parquet file: {error}") from None
    known = {"image": IMAGE_COLUMNS, "text": TEXT_COLUMNS, None: (*IMAGE_COLUMNS, *TEXT_COLUMNS)}[kind]
    names: tuple[str, ...] = (column,) if column else known
    found = next((name for name in names if name in schema.names), None)
    if found is None:
        raise UserError(
            f"{table} has none of the columns {', '.join(names)}: it has {', '.join(schema.names)}; "
            "name one with --column"
        )
    type_ = schema.field(found).type
    is_text = pa.types.is_string(type_) or pa.types.is_large_string(type_)
    if not is_text and not _is_binary(type_):
        raise UserError(f"column {found!r} of {table} is {type_}: images are binary, texts are strings")
    id_column = next((name for name in ID_COLUMNS if name in schema.names), "")
    # A row group is the smallest part of a Parquet file that can be read alone.
    for group in range(groups):
        yield InputPart(
            "text" if is_text else "image", parquet=str(table), row_group=group, column=found, id_column=id_column
        )


def read_rows(part: InputPart) -> Iterator[InputRow]:
    """The rows of a part, in order."""
    if part.parquet:
        yield from _table_rows(part)
    elif part.kind == "text":
        for number, line in enumerate(read_lines(Path(part.files[0])), 1):
            yield InputRow(str(number), f"{part.files[0]}:{number}", line)
    else:
        for name in part.files:
            path = Path(part.root, name)
            yield InputRow(name, str(path), path.read_bytes())


def _table_rows(part: InputPart) -> Iterator[InputRow]:
    columns = [part.column] + ([part.id_column] if part.id_column else [])
    table = pq.ParquetFile(part.parquet).read_row_group(part.row_group, columns=columns)
    ids = table[part.id_column].to_pylist() if part.id_column else [None] * table.num_rows
    for index, (identity, value) in enumerate(zip(ids, table[part.column].to_pylist(), strict=True)):
        row = f"{part.parquet}#{part.row_group}:{index}"
        yield InputRow(str(identity) if identity is not None else row, f"{row}:{part.column}", value)


def read_image_at(location: str) -> bytes:
    """The encoded image at the location of an `InputRow`.

    Raises:
        UserError: it cannot be read any more, or an index of an earlier version does not tell its column.
    """
    found = IN_PARQUET.fullmatch(location)
    try:
        if found is None:
            return Path(location).read_bytes()
        file = pq.ParquetFile(found["file"])
        column = found["column"] or _only_image_column(file.schema_arrow, location)
        value: bytes = file.read_row_group(int(found["group"]), columns=[column])[column][int(found["row"])].as_py()
        return value
    except (OSError, KeyError, IndexError, pa.ArrowException) as error:
        raise UserError(f"the image at {location} cannot be read any more: {error}; embed the images again") from None


def _only_image_column(schema: pa.Schema, location: str) -> str:
    names = [field.name for field in schema if _is_binary(field.type)]
    if len(names) != 1:
        raise UserError(
            f"the image at {location} may be in any of {', '.join(names) or 'no column'}: embed the images again, "
            "with this version, which stores the column"
        )
    return str(names[0])


def _is_binary(type_: pa.DataType) -> bool:
    return bool(pa.types.is_binary(type_) or pa.types.is_large_binary(type_))
