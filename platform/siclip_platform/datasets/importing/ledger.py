"""The ledger of an import: a Parquet file with one row for every rejected row of the source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from siclip.errors import UserError
from siclip_platform.datasets.importing.sources.sample import NOT_BAD, Reason, Rejection, SourceSample
from siclip_platform.storage.atomic import replacing
from siclip_platform.storage.hashing import sha256_of

LEDGER = "ledger.parquet"
LEDGER_SCHEMA = pa.schema(
    [
        pa.field("source", pa.string()),  # a file, relative to the source
        pa.field("place", pa.string()),  # row or member in that file
        pa.field("id", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
        pa.field("sha256", pa.string()),  # of the image's bytes; null without an image
        pa.field("bytes", pa.int64()),
    ]
)
ROWS_BEFORE_STOP = 1_000  # a share of fewer rows is too uncertain to stop an import
DETAIL_CHARACTERS = 500
PIECE_ROWS = 10_000


def ledger_row(sample: SourceSample, rejection: Rejection) -> dict[str, Any]:
    """Return a row of `LEDGER_SCHEMA`."""
    detail, digest = rejection.detail, sample.without_image().digest or sample.digest
    if sample.by_path and rejection.reason is Reason.NOT_AN_IMAGE:
        # The row may name a file of the reader that is none of its business: nothing of it is stored.
        detail, digest = "the file that the row names is no image", None
    return {
        "source": storable(sample.source),
        "place": storable(sample.location),
        "id": storable(sample.id),
        "reason": rejection.reason.value,
        "detail": storable(detail)[:DETAIL_CHARACTERS],
        "sha256": digest and digest[0],
        "bytes": digest and digest[1],
    }


def storable(text: str) -> str:
    """Escape the lone surrogates of a text, which UTF-8 cannot encode."""
    return text.encode("utf-8", errors="backslashreplace").decode()


def write_ledger(path: Path, tables: Iterable[pa.Table]) -> tuple[str, int]:
    """Write tables to one file, completely or not at all; return its SHA-256 and the number of rows."""
    rows = 0
    with replacing(path) as temporary:
        with pq.ParquetWriter(temporary, LEDGER_SCHEMA, compression="zstd") as writer:
            for table in tables:
                if table.num_rows:
                    writer.write_table(table.select(LEDGER_SCHEMA.names).cast(LEDGER_SCHEMA))
                    rows += table.num_rows
        digest = sha256_of(temporary)
    return digest, rows


class LedgerFile:
    """A part's ledger, written in pieces: a part can have more rejected rows than fit into memory.

    Attributes:
        reasons: reason → rows so far.
    """

    def __init__(self, writer: pq.ParquetWriter, schema: pa.Schema) -> None:
        self.reasons: Counter[str] = Counter()
        self._writer = writer
        self._schema = schema
        self._rows: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any]) -> None:
        self.reasons[row["reason"]] += 1
        self._rows.append(row)
        if len(self._rows) == PIECE_ROWS:
            self.flush()

    def flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, self._schema))
            self._rows = []


@contextmanager
def ledger_file(path: Path, schema: pa.Schema) -> Iterator[LedgerFile]:
    """Write a ledger to ``path``, completely or not at all."""
    with replacing(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        file = LedgerFile(writer, schema)
        yield file
        file.flush()


class Tally:
    """The rows read, merged into others, and rejected so far."""

    def __init__(self) -> None:
        self.read = 0
        self.merged = 0
        self.reasons: Counter[str] = Counter()

    def add(self, read: int, reasons: dict[str, int], merged: int = 0) -> None:
        self.read += read
        self.merged += merged
        self.reasons.update(reasons)

    @property
    def rejected(self) -> int:
        return self.reasons.total()

    @property
    def bad(self) -> int:
        """Rejected rows, except duplicates and images that were never downloaded."""
        return sum(count for reason, count in self.reasons.items() if reason not in NOT_BAD)

    @property
    def written(self) -> int:
        return self.read - self.rejected - self.merged

    def check(self, most: float, folder: Path, finished: bool) -> None:
        """Stop an import with too many bad rows.

        Args:
            most: largest accepted share of bad rows.
            folder: with the ledger, for the message.
            finished: all rows were read; before that, at least `ROWS_BEFORE_STOP` rows are required.

        Raises:
            UserError: the share is larger; the message lists the reasons.
        """
        # Early in an import a few bad rows are a large share.
        if self.bad <= most * self.read or (self.read < ROWS_BEFORE_STOP and not finished):
            return
        lines = [f"  {reason}: {count:,}" for reason, count in self.reasons.most_common() if reason not in NOT_BAD]
        allow = ""
        if self.reasons[Reason.REFUSED_PATH]:
            allow = "; paths outside the source's folder need --allow-outside FOLDER, addresses --allow-download HOST"
        if self.reasons[Reason.DUPLICATE_ID]:
            allow += "; if each file numbers its ids from the start, use --prefix-ids"
        raise UserError(
            f"{self.bad:,} of {self.read:,} rows are bad, {self.bad / self.read:.2%}, more than "
            f"--max-bad-share {most:g}:\n" + "\n".join(lines) + f"\n{folder / LEDGER} lists them. Finished "
            "parts are kept: accept the rows with a higher --max-bad-share, or fix the source and use an empty folder"
            + allow
        )
