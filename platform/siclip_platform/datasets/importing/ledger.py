"""The ledger of an import: one row of Parquet for every row of the source that was not taken over."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from siclip.errors import UserError
from siclip_platform.datasets.importing.sources.sample import LEFT_OUT, Rejection, SourceSample
from siclip_platform.storage.atomic import replacing
from siclip_platform.storage.hashing import sha256_of

LEDGER = "ledger.parquet"
LEDGER_SCHEMA = pa.schema(
    [
        pa.field("source", pa.string()),  # a file, relative to what was imported
        pa.field("place", pa.string()),  # member or row in it
        pa.field("id", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
        pa.field("sha256", pa.string()),  # of the image's bytes; null where there are none
        pa.field("bytes", pa.int64()),
    ]
)
ROWS_BEFORE_STOP = 1_000  # a share of fewer rows says too little to stop for
DETAIL_CHARACTERS = 500


def ledger_row(sample: SourceSample, rejection: Rejection) -> dict[str, Any]:
    """A row of `LEDGER_SCHEMA`; what UTF-8 cannot hold is written as an escape."""
    image = sample.image
    return {
        "source": storable(sample.source),
        "place": storable(sample.place),
        "id": storable(sample.id),
        "reason": rejection.reason.value,
        "detail": storable(rejection.detail)[:DETAIL_CHARACTERS],
        "sha256": None if image is None else hashlib.sha256(image).hexdigest(),
        "bytes": None if image is None else len(image),
    }


def storable(text: str) -> str:
    return text.encode("utf-8", errors="backslashreplace").decode()


def write_ledger(path: Path, tables: Iterable[pa.Table]) -> tuple[str, int]:
    """Write the tables one after the other, whole or not at all; SHA-256 of the file and its rows."""
    rows = 0
    with replacing(path) as temporary:
        with pq.ParquetWriter(temporary, LEDGER_SCHEMA, compression="zstd") as writer:
            for table in tables:
                if table.num_rows:
                    writer.write_table(table.select(LEDGER_SCHEMA.names).cast(LEDGER_SCHEMA))
                    rows += table.num_rows
        digest = sha256_of(temporary)
    return digest, rows


class Tally:
    """Rows read and why they were rejected, so far."""

    def __init__(self) -> None:
        self.read = 0
        self.reasons: Counter[str] = Counter()

    def add(self, read: int, reasons: dict[str, int]) -> None:
        self.read += read
        self.reasons.update(reasons)

    @property
    def rejected(self) -> int:
        return self.reasons.total()

    @property
    def bad(self) -> int:
        """Without rows that were never downloaded and duplicates."""
        return sum(count for reason, count in self.reasons.items() if reason not in LEFT_OUT)

    @property
    def written(self) -> int:
        return self.read - self.rejected

    def check(self, most: float, folder: Path, finished: bool) -> None:
        """Refuse a share of bad rows above ``most``, once it says something.

        Raises:
            UserError: with the reasons; what is done stays.
        """
        if self.bad <= most * self.read or (self.read < ROWS_BEFORE_STOP and not finished):
            return
        lines = [f"  {reason}: {count:,}" for reason, count in self.reasons.most_common() if reason not in LEFT_OUT]
        raise UserError(
            f"{self.bad:,} of {self.read:,} rows are bad, {self.bad / self.read:.2%}, more than "
            f"--max-bad-share {most:g}:\n" + "\n".join(lines) + f"\n{folder / LEDGER} lists them. What is done is "
            "kept: mend the source and begin in an empty folder, or accept them with a higher --max-bad-share"
        )
