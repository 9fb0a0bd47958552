"""The keys of a dataset's rows, for finding rows by them: 16 bytes of hash and 8 of position for each row."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from siclip.errors import UserError
from siclip_platform.datasets.importing.given.rows import Key, normal_key
from siclip_platform.datasets.manifest import Dataset
from siclip_platform.datasets.parquet import parquet_file

HASH_BYTES = 16
Positions = npt.NDArray[np.int64]
COLUMNS: dict[Key, list[str]] = {"id": ["id"], "url": ["meta"], "sha256": ["meta", "image"]}


def key_hash(key: str) -> bytes:
    """Return what is compared of a key."""
    return hashlib.blake2b(key.encode(errors="surrogateescape"), digest_size=HASH_BYTES).digest()


class DatasetKeys:
    """Key → the rows that have it, by their positions in all chosen splits, in the order of the shards.

    Attributes:
        rows: number of rows.
        without: rows that have no such key.
        example: the first key; None: no row has one.
    """

    def __init__(self, dataset: Dataset, splits: Sequence[str], kind: Key) -> None:
        self.rows = self.without = 0
        self.example: str | None = None
        found, positions = bytearray(), []
        for key in _keys(dataset, splits, kind):
            if key is None:
                self.without += 1
            else:
                self.example = self.example or key
                found += key_hash(key)
                positions.append(self.rows)
            self.rows += 1
        hashes = np.frombuffer(bytes(found), dtype=f"S{HASH_BYTES}")
        order = np.argsort(hashes, kind="stable")
        self._hashes, self._positions = hashes[order], np.array(positions, np.int64)[order]

    def check(self, dataset: Dataset, kind: Key) -> None:
        """Refuse a dataset that has no such keys.

        Raises:
            UserError: names what it has.
        """
        if self.example is None:
            raise UserError(
                f"no row of {dataset.folder} has a {kind} in its meta: its source named none. Match by another --key"
            )

    def find(self, hashes: Sequence[bytes]) -> tuple[Positions, Positions]:
        """Return (index of a hash, position of a row with this key) for each row that has one of these keys."""
        wanted = np.array(hashes, dtype=f"S{HASH_BYTES}")
        first = np.searchsorted(self._hashes, wanted, side="left")
        counts = np.searchsorted(self._hashes, wanted, side="right") - first
        index = np.repeat(np.arange(len(wanted)), counts)
        # The rows of a key are neighbours: its first one, and those after it.
        step = np.arange(len(index)) - np.repeat(np.cumsum(counts) - counts, counts)
        return index, self._positions[first[index] + step]


def _keys(dataset: Dataset, splits: Sequence[str], kind: Key) -> Iterator[str | None]:
    for split in splits:
        for shard in dataset.shards(split):
            with parquet_file(shard) as file:
                for group in range(file.num_row_groups):
                    yield from _group_keys(file.read_row_group(group, columns=COLUMNS[kind]), kind)


def _group_keys(table: pa.Table, kind: Key) -> Iterator[str | None]:
    if kind == "id":
        yield from table["id"].to_pylist()
        return
    for number, meta in enumerate(table["meta"].to_pylist()):
        value = _value(meta, kind)
        if value is None and kind == "sha256":
            # Of an image whose bytes the import kept, this is also the source's.
            value = hashlib.sha256(table["image"][number].as_buffer()).hexdigest()
        yield None if value is None else normal_key(value, kind)


def _value(meta: str | None, kind: Key) -> str | None:
    # Parsing is the slow part, and most datasets have either all or none.
    if meta is None or f'"{kind}"' not in meta:
        return None
    try:
        value = json.loads(meta).get(kind)
    except (ValueError, AttributeError, RecursionError):
        return None
    return value if isinstance(value, str) and value.strip() else None
