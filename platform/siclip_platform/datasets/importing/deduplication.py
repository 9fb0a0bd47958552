"""The second stage of an import: finding duplicates among all parts, and rewriting the shards without them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from siclip_platform.datasets.derived.stage import Task, TaskOutput
from siclip_platform.datasets.importing.duplicates import near, repeated
from siclip_platform.datasets.importing.ledger import LEDGER_SCHEMA
from siclip_platform.datasets.importing.parts import KEYS_SCHEMA, ORDER, ImportConfig
from siclip_platform.datasets.importing.sources.sample import Reason
from siclip_platform.datasets.manifest import write_shard


@dataclass
class Drops:
    """The rows that a part loses.

    Attributes:
        rows: index of the shard → indices of rows.
        ledger: a row of the ledger for each, with its order in the part.
    """

    rows: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    ledger: list[dict[str, Any]] = field(default_factory=list)

    @property
    def reasons(self) -> dict[str, int]:
        return dict(Counter(row["reason"] for row in self.ledger))

    @property
    def table(self) -> pa.Table:
        return pa.Table.from_pylist(self.ledger, pa.schema([ORDER, *LEDGER_SCHEMA]))


def find_duplicates(keys: Sequence[Path], config: ImportConfig) -> dict[int, Drops]:
    """Return index of the part → the rows that it loses. The first of several equal rows is kept.

    Args:
        keys: the key files of all parts, in order.
        config: which duplicates are dropped.
    """
    columns = ["id", *(["sha256"] if config.drop_duplicates else [])]
    columns += ["phash"] if config.near_duplicates is not None else []
    tables = [pq.read_table(path, columns=columns, schema=_subset(columns)) for path in keys]
    starts = np.cumsum([0, *(table.num_rows for table in tables)])
    table = pa.concat_tables(tables) if tables else _subset(columns).empty_table()
    ids = table["id"]
    kept = np.ones(table.num_rows, bool)
    drops: dict[int, Drops] = defaultdict(Drops)
    opened: dict[int, pa.Table] = {}

    def drop(reason: Reason, found: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]) -> None:
        for position, first in zip(*found, strict=True):
            kept[position] = False
            part = int(np.searchsorted(starts, position, side="right")) - 1
            # Only the parts with duplicates are read with all columns; most parts have none.
            if part not in opened:
                opened[part] = pq.read_table(keys[part], schema=KEYS_SCHEMA)
            key = opened[part].slice(int(position - starts[part]), 1).to_pylist()[0]
            drops[part].rows[key["shard"]].append(key["row"])
            row = {name: key[name] for name in ("order", "source", "place", "id", "bytes")}
            row |= {"reason": reason.value, "sha256": key["sha256"].hex()}
            row["detail"] = f"{ids[int(first)].as_py()!r} comes first"
            drops[part].ledger.append(row)

    # In this order: a row is dropped for the first reason that applies, and then no longer compared.
    drop(Reason.DUPLICATE_ID, repeated(ids, kept))
    if config.drop_duplicates:
        drop(Reason.DUPLICATE_IMAGE, repeated(table["sha256"], kept))
    if config.near_duplicates is not None:
        hashes = table["phash"].to_numpy().astype(np.uint64)
        drop(Reason.NEAR_DUPLICATE, near(hashes, kept, config.near_duplicates))
    return dict(drops)


def _subset(columns: list[str]) -> pa.Schema:
    return pa.schema([KEYS_SCHEMA.field(name) for name in columns])


def filter_shard(folder: Path, task: Task) -> TaskOutput:
    """Copy a shard without some rows; a shard that loses all rows is not written."""
    source = Path(task.payload["source"])
    table = pq.read_table(source)
    keep = np.ones(table.num_rows, bool)
    keep[task.payload["drop"]] = False
    table = table.filter(pa.array(keep))
    if not table.num_rows:
        return TaskOutput(result={"entry": None})
    entry = write_shard(table, folder / source.name, task.payload["row_group_rows"])
    return TaskOutput(files=(source.name,), result={"entry": entry.model_dump()})
