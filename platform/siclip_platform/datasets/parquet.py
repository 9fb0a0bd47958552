"""Parquet files at any path: local ones opened by pyarrow, those in a store read by byte ranges."""

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
def parquet_file(path: AnyPath) -> Iterator[pq.ParquetFile]:
    """Open a file for the block. From a store the columns of a row group are fetched together, in few requests.

    Raises:
        StoreError: the store does not answer or refuses, while opening or in the block.
    """
    if isinstance(path, Path):
        with pq.ParquetFile(path) as file:
            yield file
        return
    with path.open() as content, store_errors(path, parsing=True), pq.ParquetFile(content, pre_buffer=True) as file:
        yield file


def read_table(path: AnyPath, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a whole file."""
    with parquet_file(path) as file:
        return file.read(columns=None if columns is None else list(columns))


@dataclass(frozen=True)
class Footer:
    """The schema of a file and the rows of each row group."""

    schema: pa.Schema
    groups: tuple[int, ...]


def read_footer(path: AnyPath, found: Stat | None = None) -> Footer:
    """Read a file's footer. The footer of a file in a store is cached until the file changes.

    Args:
        path: the file.
        found: its `Stat`, if the caller has it.
    """
    if isinstance(path, Path):
        return _footer(path)
    found = found or path.stat()
    # Some stores report no time; then a changed file of the same size could not be detected.
    return _cached_footer(path, found) if found.st_mtime_ns else _footer(path)


@lru_cache(maxsize=4096)
def _cached_footer(path: RemotePath, found: Stat) -> Footer:
    return _footer(path)


def _footer(path: AnyPath) -> Footer:
    with parquet_file(path) as file:
        metadata = file.metadata
        groups = tuple(metadata.row_group(index).num_rows for index in range(metadata.num_row_groups))
        return Footer(file.schema_arrow, groups)
