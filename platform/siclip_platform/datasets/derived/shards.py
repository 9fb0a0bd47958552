"""Reading the dataset's shards for what is derived from them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from siclip.errors import UserError


@contextmanager
def readable(path: Path) -> Iterator[pq.ParquetFile]:
    """Open a shard.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{path} cannot be read ({str(error)[:200]}): compare the dataset with its manifest (siclip-platform "
            "data verify) and restore that file"
        ) from None


def group_rows(path: Path) -> list[int]:
    """Return the rows of each row group of a shard.

    Raises:
        UserError: it is missing or damaged.
    """
    with readable(path) as file:
        return [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]
