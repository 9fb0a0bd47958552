"""The second stage of an import: rows of one image and duplicates among all parts, and the shards without them."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from siclip_platform.datasets.derived.stage import Task, TaskOutput
from siclip_platform.datasets.importing.beside import BesideConfig, change_beside
from siclip_platform.datasets.importing.duplicates import near, repeated
from siclip_platform.datasets.importing.ledger import LEDGER_SCHEMA
from siclip_platform.datasets.importing.parts import (
    KEYS_SCHEMA,
    ORDER,
    ImportConfig,
    add_captions,
    drawn,
    files_of,
)
from siclip_platform.datasets.importing.sources.sample import Reason
from siclip_platform.datasets.manifest import write_shard
from siclip_platform.datasets.schema import SCHEMA


@dataclass
class Changes:
    """What the second stage changes in the shards of a part.

    Attributes:
        rows: index of the shard → indices of rows that it loses.
        captions: index of the shard → (index of the row that gets captions, part, shard and index of the row that has
            them), in order.
        moved: index of the shard → split → indices of rows that go to it.
        ledger: a row of the ledger for each duplicate, with its order in the part.
        merged: rows added to others, minus those that were added to a duplicate.
    """

    rows: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    captions: dict[int, list[tuple[int, int, int, int]]] = field(default_factory=lambda: defaultdict(list))
    moved: dict[int, dict[str, list[int]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    ledger: list[dict[str, Any]] = field(default_factory=list)
    merged: int = 0

    @property
    def reasons(self) -> dict[str, int]:
        return dict(Counter(row["reason"] for row in self.ledger))

    @property
    def shards(self) -> list[int]:
        return sorted({*self.rows, *self.captions, *self.moved})

    @property
    def table(self) -> pa.Table:
        return pa.Table.from_pylist(self.ledger, pa.schema([ORDER, *LEDGER_SCHEMA]))


def find_changes(keys: Sequence[Path], config: ImportConfig) -> dict[int, Changes]:
    """Return index of the part → its changes. Of several equal rows the first is kept.

    Rows of one image become one sample, then duplicates are dropped, then shares are drawn by caption if asked.

    Args:
        keys: the key files of all parts, in order.
        config: what is dropped and drawn.
    """
    by_caption = config.by_caption
    columns = ["id", "image", *(["sha256"] if config.drop_duplicates or by_caption else [])]
    columns += ["phash"] if config.near_duplicates is not None else []
    columns += ["captions", "drawn"] if by_caption else []
    tables = [pq.read_table(path, columns=columns, schema=_subset(columns)) for path in keys]
    table = pa.concat_tables(tables) if tables else _subset(columns).empty_table()
    found = _Found(keys, np.cumsum([0, *(part.num_rows for part in tables)]), np.ones(table.num_rows, bool))
    found.merge(*repeated(table["image"], found.kept & np.asarray(table["image"].is_valid())))
    # In this order: a row is dropped for the first reason that applies, and then no longer compared.
    found.drop(Reason.DUPLICATE_ID, table["id"], *repeated(table["id"], found.kept))
    if config.drop_duplicates:
        found.drop(Reason.DUPLICATE_IMAGE, table["id"], *repeated(table["sha256"], found.kept))
    if config.near_duplicates is not None:
        hashes = table["phash"].to_numpy().astype(np.uint64)
        found.drop(Reason.NEAR_DUPLICATE, table["id"], *near(hashes, found.kept, config.near_duplicates))
    found.finish()
    if by_caption:
        found.move(drawn_by_caption(table, config.shares))
    return dict(found.changes)


class _Found:
    """The changes found so far. Positions are those of the rows in all key files together."""

    def __init__(self, keys: Sequence[Path], starts: npt.NDArray[np.int64], kept: npt.NDArray[np.bool_]) -> None:
        self.kept = kept
        self.changes: dict[int, Changes] = defaultdict(Changes)
        self._keys = keys
        self._starts = starts
        self._opened: dict[int, pa.Table] = {}
        self._merged: dict[int, list[int]] = defaultdict(list)  # position of a sample → positions of its further rows

    def _key(self, position: int) -> tuple[int, dict[str, Any]]:
        """Return (part, row of `KEYS_SCHEMA`)."""
        part = int(np.searchsorted(self._starts, position, side="right")) - 1
        # Only the parts with changes are read with all columns; most parts have none.
        if part not in self._opened:
            self._opened[part] = pq.read_table(self._keys[part], schema=KEYS_SCHEMA)
        return part, self._opened[part].slice(int(position - self._starts[part]), 1).to_pylist()[0]

    def merge(self, later: npt.NDArray[np.int64], first: npt.NDArray[np.int64]) -> None:
        for position, sample in zip(later.tolist(), first.tolist(), strict=True):
            self.kept[position] = False
            self._merged[sample].append(position)

    def drop(
        self, reason: Reason, ids: pa.ChunkedArray, later: npt.NDArray[np.int64], first: npt.NDArray[np.int64]
    ) -> None:
        for position, original in zip(later.tolist(), first.tolist(), strict=True):
            self.kept[position] = False
            detail = f"{ids[original].as_py()!r} comes first"
            for row in (position, *self._merged.pop(position, [])):
                part, key = self._key(row)
                changes = self.changes[part]
                changes.rows[key["shard"]].append(key["row"])
                lost = {name: key[name] for name in ("source", "bytes")}
                lost |= {"reason": reason.value, "sha256": key["sha256"].hex(), "detail": detail}
                rows = [{name: key[name] for name in ("order", "id", "place")}, *key["merged"]]
                changes.ledger += [{**lost, **which} for which in rows]
                # The first stage counted these as merged; now each is in the ledger.
                changes.merged -= len(key["merged"])

    def finish(self) -> None:
        """Move the captions of further rows of an image into its sample."""
        for sample, positions in sorted(self._merged.items()):
            target_part, target = self._key(sample)
            for position in positions:
                part, key = self._key(position)
                place = (target["row"], part, key["shard"], key["row"])
                self.changes[target_part].captions[target["shard"]].append(place)
                self.changes[part].rows[key["shard"]].append(key["row"])
                self.changes[part].merged += 1

    def move(self, splits: Mapping[int, str]) -> None:
        for position, split in splits.items():
            if self.kept[position]:
                part, key = self._key(position)
                self.changes[part].moved[key["shard"]][split].append(key["row"])


def drawn_by_caption(table: pa.Table, shares: Mapping[str, float]) -> dict[int, str]:
    """Return index of a row → the split that it goes to, the same for all rows connected by captions or images.

    Args:
        table: with the columns ``sha256``, ``captions`` and ``drawn`` of `KEYS_SCHEMA`.
        shares: split → share of the groups of connected rows; a group is drawn by its smallest SHA-256.
    """
    # Imported here: it takes seconds and is rarely needed.
    import scipy.sparse.csgraph

    rows = table.num_rows
    eligible = np.asarray(table["drawn"])
    captions = table["captions"].combine_chunks()
    owners = np.asarray(pc.list_parent_indices(captions))
    images = table["sha256"].combine_chunks()
    nodes = pa.concat_arrays([images.cast(pa.binary()), pc.list_flatten(captions).cast(pa.binary())])
    codes = np.asarray(nodes.dictionary_encode().indices)
    owners = np.concatenate([np.arange(rows), owners])
    used = eligible[owners]
    size = rows + int(codes.max(initial=-1)) + 1
    edges = scipy.sparse.coo_array((np.ones(used.sum(), bool), (owners[used], rows + codes[used])), (size, size))
    _, labels = scipy.sparse.csgraph.connected_components(edges, directed=False)
    smallest: dict[int, bytes] = {}
    for row in np.flatnonzero(eligible).tolist():
        label, digest = int(labels[row]), images[row].as_py()
        smallest[label] = min(smallest.get(label, digest), digest)
    # Hashed again, because the smallest of many digests is not uniform.
    chosen = {label: drawn(hashlib.sha256(digest).digest(), shares) for label, digest in smallest.items()}
    found = ((row, chosen[int(labels[row])]) for row in np.flatnonzero(eligible).tolist())
    return {row: split for row, split in found if split}


def _subset(columns: list[str]) -> pa.Schema:
    return pa.schema([KEYS_SCHEMA.field(name) for name in columns])


def change_shard(folder: Path, task: Task) -> TaskOutput:
    """Copy a shard without some rows, with further captions; rows of other splits get shards of their own.

    A shard without rows is not written. The result has the ``shards`` with their splits.
    """
    source = Path(task.payload["source"])
    table = _with_captions(pq.read_table(source), task.payload["captions"])
    own = task.payload["split"]
    splits = np.full(table.num_rows, own, dtype=object)
    for split, moved in task.payload["moved"].items():
        splits[moved] = split
    splits[task.payload["drop"]] = None
    chosen = {split: splits == split for split in (own, *task.payload["moved"])}
    chosen = {split: rows for split, rows in chosen.items() if rows.any()}
    names = {split: split + source.name.removeprefix(own) for split in chosen}
    groups = task.payload["row_group_rows"]
    shards: list[dict[str, Any]] = []
    for split, rows in chosen.items():
        entry = write_shard(table.filter(pa.array(rows)), folder / names[split], groups)
        shards.append({"split": split, **entry.model_dump()})
    if "beside" in task.payload:
        config = BesideConfig.model_validate(task.payload["beside"])
        rows_of = {names[split]: rows for split, rows in chosen.items()}
        beside = change_beside(folder, source, rows_of, config, groups)
        shards = [{**shard, "beside": beside[shard["path"]]} for shard in shards]
    return TaskOutput(files=tuple(chain.from_iterable(map(files_of, shards))), result={"shards": shards})


def _with_captions(table: pa.Table, more: list[tuple[int, str, int]]) -> pa.Table:
    """Add captions to rows: (index of the row, the shard and the index in it of a row that has them)."""
    if not more:
        return table
    captions = table["captions"].to_pylist()
    opened: dict[str, pa.ChunkedArray] = {}
    for row, path, index in more:
        if path not in opened:
            opened[path] = pq.read_table(path, columns=["captions"])["captions"]
        captions[row] = add_captions(captions[row], opened[path][index].as_py())
    field_index = table.schema.get_field_index("captions")
    return table.set_column(
        field_index, table.schema.field(field_index), pa.array(captions, SCHEMA.field("captions").type)
    )
