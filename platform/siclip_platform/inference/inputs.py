"""What can be embedded: a folder of images, a file of texts, Parquet with images or texts; as rows of one form.

A row is ``{"id", "place"}`` and, where it does not have to be read from a file, ``"image"`` (bytes) or ``"text"``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from siclip.errors import UserError
from siclip_platform.datasets.manifest import MANIFEST, open_dataset

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
IMAGE_COLUMNS = ("image", "jpg", "image_bytes")
TEXT_COLUMNS = ("text", "caption", "txt")
ID_COLUMNS = ("id", "key", "uid")
Modality = Literal["image", "text"]


@dataclass(frozen=True)
class InputPart:
    """Rows that one task reads: image files of a folder, lines of a text file, or a row group of a Parquet file."""

    kind: Modality
    files: tuple[str, ...] = ()
    parquet: str = ""
    row_group: int = 0
    column: str = ""
    id_column: str = ""
    root: str = ""


def find_pieces(source: Path, kind: Modality | None, column: str | None, size: int) -> list[InputPart]:
    """Cut a source into pieces of about ``size`` rows. ``kind`` and ``column``: None where the source tells.

    Raises:
        UserError: there is nothing to embed, or a Parquet file has no such column.
    """
    if not source.exists():
        raise UserError(f"{source} does not exist: name a folder of images, a Parquet file or folder, or a .txt file")
    if source.is_file() and source.suffix == ".txt":
        return [InputPart("text", files=(str(source),), root=str(source.parent))]
    tables = _tables(source)
    if tables:
        return [piece for table in tables for piece in _row_groups(table, kind, column)]
    images = sorted(p for p in source.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES) if source.is_dir() else []
    if not images:
        raise UserError(
            f"nothing to embed in {source}: it holds neither images ({', '.join(sorted(IMAGE_SUFFIXES))}) nor "
            "Parquet files, and is no .txt file with a text a line"
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
    wanted: tuple[str, ...] = (column,) if column else known
    found = next((name for name in wanted if name in schema.names), None)
    if found is None:
        raise UserError(
            f"{table} has none of the columns {', '.join(wanted)}: it has {', '.join(schema.names)}; "
            "name one with --column"
        )
    type_ = schema.field(found).type
    is_text = pa.types.is_string(type_) or pa.types.is_large_string(type_)
    if not is_text and not (pa.types.is_binary(type_) or pa.types.is_large_binary(type_)):
        raise UserError(f"column {found!r} of {table} is {type_}: images are binary, texts are strings")
    id_column = next((name for name in ID_COLUMNS if name in schema.names), "")
    for group in range(groups):
        yield InputPart(
            "text" if is_text else "image", parquet=str(table), row_group=group, column=found, id_column=id_column
        )


def read_rows(piece: InputPart) -> Iterator[dict[str, Any]]:
    """The rows of a piece, in order."""
    if piece.parquet:
        yield from _table_rows(piece)
    elif piece.kind == "text":
        for number, line in enumerate(Path(piece.files[0]).read_text(encoding="utf-8").splitlines(), 1):
            yield {"id": str(number), "place": f"{piece.files[0]}:{number}", "text": line}
    else:
        for name in piece.files:
            path = Path(piece.root, name)
            yield {"id": name, "place": str(path), "image": path.read_bytes()}


def _table_rows(piece: InputPart) -> Iterator[dict[str, Any]]:
    columns = [piece.column] + ([piece.id_column] if piece.id_column else [])
    table = pq.ParquetFile(piece.parquet).read_row_group(piece.row_group, columns=columns)
    ids = table[piece.id_column].to_pylist() if piece.id_column else [None] * table.num_rows
    for number, (identity, value) in enumerate(zip(ids, table[piece.column].to_pylist(), strict=True)):
        place = f"{piece.parquet}#{piece.row_group}:{number}"
        yield {"id": str(identity) if identity is not None else place, "place": place, piece.kind: value}


def read_place(place: str) -> bytes:
    """The image file that a row's ``place`` names.

    Raises:
        UserError: it is not there any more.
    """
    table, mark, rest = place.rpartition("#")
    try:
        if not mark or not table.endswith(".parquet"):
            return Path(place).read_bytes()
        group, _, number = rest.partition(":")
        file = pq.ParquetFile(table)
        column = next(
            name for name in file.schema_arrow.names if pa.types.is_binary(file.schema_arrow.field(name).type)
        )
        value: bytes = file.read_row_group(int(group), columns=[column])[column][int(number)].as_py()
        return value
    except (OSError, StopIteration, pa.ArrowException) as error:
        raise UserError(f"the image at {place} cannot be read any more: {error}; embed the images again") from None
