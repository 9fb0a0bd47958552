"""Imports of small sources in this process, for tests of what comes out of odd and hostile ones."""

from __future__ import annotations

import io
import tarfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from siclip_platform.datasets.derived.stage import Pool
from siclip_platform.datasets.importing.ingest import Imported, import_dataset
from siclip_platform.datasets.importing.parts import ImportConfig
from siclip_platform.datasets.importing.sources.access import Access
from siclip_platform.datasets.importing.sources.columns import ColumnNames
from siclip_platform.datasets.importing.sources.find import find_sources
from siclip_platform.datasets.importing.sources.patterns import SplitPatterns


def picture(number: int) -> bytes:
    """Return a PNG that differs from that of every other number."""
    buffer = io.BytesIO()
    small = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(small).resize((40, 40), Image.Resampling.NEAREST).save(buffer, "PNG")
    return buffer.getvalue()


def add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


class Outcome(NamedTuple):
    """What an import wrote.

    Attributes:
        imported: its result.
        rows: split → rows of the dataset.
        ledger: rows of the ledger.
    """

    imported: Imported
    rows: dict[str, list[dict[str, Any]]]
    ledger: list[dict[str, Any]]

    @property
    def reasons(self) -> Counter[str]:
        return Counter(row["reason"] for row in self.ledger)

    @property
    def captions(self) -> dict[str, list[str]]:
        """Id → captions, over all splits."""
        return {
            row["id"]: [caption["text"] for caption in row["captions"]] for rows in self.rows.values() for row in rows
        }


def imported(
    source: Path | Sequence[str],
    folder: Path,
    config: ImportConfig | None = None,
    *,
    columns: ColumnNames | None = None,
    rows: int = 10_000,
    access: Access | None = None,
    keep_splits: bool = True,
    splits: Sequence[str] = (),
) -> Outcome:
    """Import one or several sources, whatever the share of bad rows."""
    names = [str(source)] if isinstance(source, Path) else source
    patterns = SplitPatterns(splits)
    kept: dict[str, Any] = {"access": access, "keep_splits": keep_splits, "splits": patterns}
    found = find_sources(names, None, columns or ColumnNames(), rows, **kept)
    done = import_dataset(found, folder, config or ImportConfig(), max_bad_share=1, pool=Pool(here=True))
    dataset = done.dataset
    tables = {
        split: pa.concat_tables(pq.read_table(path) for path in dataset.shards(split))
        for split in dataset.split_names
    }
    ledger = pq.read_table(dataset.local_folder / "ledger.parquet").to_pylist()
    return Outcome(done, {split: table.to_pylist() for split, table in tables.items()}, ledger)
