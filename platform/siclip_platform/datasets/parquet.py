"""Parquet files wherever they lie: of this machine as pyarrow opens them, of a store by ranges."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from siclip_platform.storage import AnyPath, RemotePath, Stat, store_errors


@contextmanager
def parquet_file(place: AnyPath) -> Iterator[pq.ParquetFile]:
    """Open for the block. In a store a row group's columns are fetched together, by few requests.

    Raises:
        StoreError: the store does not answer or refuses, also where it does so in the block.
    """
    if isinstance(place, Path):
        with pq.ParquetFile(place) as file:
            yield file
        return
    with place.open() as content, store_errors(place, parsing=True), pq.ParquetFile(content, pre_buffer=True) as file:
        yield file


def read_table(place: AnyPath, columns: Sequence[str] | None = None) -> pa.Table:
    """A file whole."""
    with parquet_file(place) as file:
        return file.read(columns=None if columns is None else list(columns))


@dataclass(frozen=True)
class Footer:
    """What a file says of itself: its schema and the rows of each row group."""

    schema: pa.Schema
    groups: tuple[int, ...]


def read_footer(place: AnyPath, found: Stat | None = None) -> Footer:
    """A file's footer; of one in a store it is kept, until the file there changes. ``found``: what `stat` gave."""
    if isinstance(place, Path):
        return _footer(place)
    found = found or place.stat()
    return _kept_footer(place, found) if found.st_mtime_ns else _footer(place)  # not every store knows the time


@lru_cache(maxsize=4096)
def _kept_footer(place: RemotePath, found: Stat) -> Footer:
    return _footer(place)


def _footer(place: AnyPath) -> Footer:
    with parquet_file(place) as file:
        metadata = file.metadata
        groups = tuple(metadata.row_group(index).num_rows for index in range(metadata.num_row_groups))
        return Footer(file.schema_arrow, groups)
