"""Parquet files wherever they lie: of this machine as pyarrow opens them, of a store by ranges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from siclip_platform.storage import Place, RemotePath, Stat


def parquet_file(place: Place) -> pq.ParquetFile:
    """To be closed by ``with``. In a store a row group's columns are fetched together, by few requests."""
    if isinstance(place, Path):
        return pq.ParquetFile(place)
    return pq.ParquetFile(place.open(), pre_buffer=True)


def read_table(place: Place, columns: Sequence[str] | None = None) -> pa.Table:
    """A file whole."""
    wanted = None if columns is None else list(columns)
    if isinstance(place, Path):
        return pq.read_table(place, columns=wanted)
    with parquet_file(place) as file:
        return file.read(columns=wanted)


@dataclass(frozen=True)
class Footer:
    """What a file says of itself: its schema and the rows of each row group."""

    schema: pa.Schema
    groups: tuple[int, ...]


def read_footer(place: Place) -> Footer:
    """A file's footer; of one in a store it is kept, until the file there changes."""
    if isinstance(place, Path):
        return _footer(place)
    return _kept_footer(place, place.stat())


@lru_cache(maxsize=4096)
def _kept_footer(place: RemotePath, found: Stat) -> Footer:
    return _footer(place)


def _footer(place: Place) -> Footer:
    with parquet_file(place) as file:
        metadata = file.metadata
        groups = tuple(metadata.row_group(index).num_rows for index in range(metadata.num_row_groups))
        return Footer(file.schema_arrow, groups)
