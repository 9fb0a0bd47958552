"""One part of a source → shards of the good rows, a ledger of the others, and keys for finding duplicates."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from siclip.config import Config
from siclip_platform.datasets.derived.stage import Task, TaskOutput
from siclip_platform.datasets.importing.images import ImageRules, prepare_image
from siclip_platform.datasets.importing.ledger import LEDGER_SCHEMA, ledger_row, storable
from siclip_platform.datasets.importing.sources.part import SourcePart, read_samples
from siclip_platform.datasets.importing.sources.sample import Caption, Reason, Rejection, SourceSample
from siclip_platform.datasets.manifest import ShardEntry, write_shard
from siclip_platform.datasets.schema import ORIGINAL, SCHEMA, SYNTHETIC
from siclip_platform.storage.atomic import replacing

VALIDATION = "validation"
ORDER = pa.field("order", pa.int64())  # of the sample in its part
KEYS_SCHEMA = pa.schema(
    [
        ORDER,
        pa.field("shard", pa.int32()),  # index of the shard among the part's
        pa.field("row", pa.int32()),
        pa.field("id", pa.string()),
        pa.field("sha256", pa.binary(32)),
        pa.field("phash", pa.uint64()),
        pa.field("bytes", pa.int64()),
        pa.field("source", pa.string()),
        pa.field("place", pa.string()),
    ]
)


class ImportConfig(Config):
    """Settings of an import.

    Attributes:
        split: of rows whose source names no split.
        validation_share: of the rows of ``split``, chosen by their ids, that go to validation.
        images: how images are checked and stored.
        prefix_ids: prefix each id with its file's name.
        shard_rows: maximum rows per shard.
        row_group_rows: rows per row group.
        drop_duplicates: drop images with the same bytes.
        near_duplicates: drop images whose 64-bit perceptual hashes differ in at most this many bits.
    """

    split: str = Field("train", pattern="^[a-z][a-z0-9_]*$")
    validation_share: float = Field(0, ge=0, lt=1)
    images: ImageRules = ImageRules()
    prefix_ids: bool = False
    shard_rows: int = Field(10_000, ge=1)
    row_group_rows: int = Field(250, ge=1)
    drop_duplicates: bool = False
    near_duplicates: int | None = Field(None, ge=0, le=8)


class PartJob(Config):
    """The payload of a task. Its digest is stored with the finished task.

    Attributes:
        root: of the source.
        number: index of the part.
        piece: the part; the stored digest depends on the name of this field.
        config: settings of the import.
    """

    root: str
    number: int
    piece: SourcePart
    config: ImportConfig


def libraries() -> dict[str, str]:
    """Return the versions of the libraries that the bytes of images and shards depend on."""
    return {name: importlib.metadata.version(name) for name in ("pillow", "pyarrow", "simplejpeg")}


def import_part(folder: Path, task: Task) -> TaskOutput:
    """Import a part; the result has the rows ``read``, ``reasons`` (reason → rows) and the ``shards``."""
    job = PartJob.model_validate(task.payload)
    shards = _Shards(folder, job)
    rejected: list[dict[str, Any]] = []
    keys: list[dict[str, Any]] = []
    seen: set[str] = set()
    read = 0
    for order, sample in enumerate(read_samples(job.root, job.piece)):
        read += 1
        try:
            row, pixels = make_row(sample, job.config)
            # Duplicates within a part; those of other parts are found by the second stage.
            if row["id"] in seen:
                raise Rejection(Reason.DUPLICATE_ID, f"{row['id']!r} stands earlier in {sample.source}")
        except Rejection as rejection:
            rejected.append({"order": order, **ledger_row(sample, rejection)})
            continue
        seen.add(row["id"])
        shard, number = shards.add(_split(row["id"], job), row)
        phash = perceptual_hash(pixels) if job.config.near_duplicates is not None else None
        keys.append({"order": order, "shard": shard, "row": number, "id": row["id"], **_keys(sample, phash)})
    shards.close()
    side = {
        f"ledger-{job.number:05d}.parquet": (rejected, pa.schema([ORDER, *LEDGER_SCHEMA])),
        f"keys-{job.number:05d}.parquet": (keys, KEYS_SCHEMA),
    }
    for name, (rows, schema) in side.items():
        with replacing(folder / name) as temporary:
            pq.write_table(pa.Table.from_pylist(rows, schema), temporary, compression="zstd")
    reasons = dict(sorted(Counter(row["reason"] for row in rejected).items()))
    entries = [{"split": split, **entry.model_dump()} for split, entry in shards.entries]
    return TaskOutput(
        files=(*side, *(entry.path for _, entry in shards.entries)),
        result={"read": read, "reasons": reasons, "shards": entries},
    )


def _keys(sample: SourceSample, phash: int | None) -> dict[str, Any]:
    image = sample.image or b""
    return {
        "sha256": hashlib.sha256(image).digest(),
        "bytes": len(image),
        "phash": phash,
        "source": storable(sample.source),
        "place": storable(sample.location),
    }


def make_row(sample: SourceSample, config: ImportConfig) -> tuple[dict[str, Any], npt.NDArray[np.uint8]]:
    """Return a row of `SCHEMA` and the pixels of its image.

    Raises:
        Rejection: the sample cannot be used.
    """
    if sample.rejected:
        raise sample.rejected
    if sample.image is None:
        raise Rejection(Reason.MISSING_IMAGE, "there is no image")
    row_id = f"{sample.source}/{sample.id}" if config.prefix_ids else sample.id
    if not row_id.strip():
        raise Rejection(Reason.DAMAGED_ROW, "it has no name to be its id")
    for text in (row_id, sample.category or ""):
        if storable(text) != text:
            raise Rejection(Reason.UNDECODABLE_TEXT, "its id or its category holds what UTF-8 cannot")
    captions = [_caption(caption) for caption in sample.captions]
    image = prepare_image(sample.image, config.images)
    row = {
        "id": row_id,
        "image": image.data,
        "width": image.width,
        "height": image.height,
        "captions": captions,
        "category": sample.category,
        "meta": json.dumps(sample.meta, separators=(",", ":")) if sample.meta else None,
    }
    return row, image.pixels


def perceptual_hash(pixels: npt.NDArray[np.uint8]) -> int:
    """Return the 64-bit pHash of imagehash."""
    # Imported here: it imports scipy, which takes seconds and is rarely needed.
    import imagehash
    from PIL import Image

    return int(str(imagehash.phash(Image.fromarray(pixels))), 16)


def _caption(caption: Caption) -> dict[str, Any]:
    if caption.source not in (ORIGINAL, SYNTHETIC):
        raise Rejection(Reason.DAMAGED_ROW, f"the caption's source {caption.source!r} is not known")
    return {"text": caption.text, "source": caption.source, "model": caption.model}


def _split(row_id: str, job: PartJob) -> str:
    split = job.piece.split or job.config.split
    if split != job.config.split or not job.config.validation_share:
        return split
    # By the id alone, so that the split does not depend on shards, order or duplicates.
    uniform = int.from_bytes(hashlib.sha256(row_id.encode()).digest()[:8]) / 2**64
    return VALIDATION if uniform < job.config.validation_share else split


class _Shards:
    """Collects rows into shards of at most ``shard_rows`` rows, separately for each split."""

    def __init__(self, folder: Path, job: PartJob) -> None:
        self.folder = folder
        self.job = job
        self.open: dict[str, tuple[int, list[dict[str, Any]]]] = {}
        self.written: dict[int, tuple[str, ShardEntry]] = {}
        self.count = 0

    def add(self, split: str, row: dict[str, Any]) -> tuple[int, int]:
        """Add a row; return the index of its shard and its index in the shard."""
        if split not in self.open:
            self.open[split] = (self.count, [])
            self.count += 1
        number, rows = self.open[split]
        rows.append(row)
        index = len(rows) - 1
        if len(rows) == self.job.config.shard_rows:
            self._write(split)
        return number, index

    def close(self) -> None:
        for split in list(self.open):
            self._write(split)

    @property
    def entries(self) -> list[tuple[str, ShardEntry]]:
        return [self.written[number] for number in range(self.count)]

    def _write(self, split: str) -> None:
        number, rows = self.open.pop(split)
        path = self.folder / f"{split}-{self.job.number:05d}-{number:03d}.parquet"
        table = pa.Table.from_pylist(rows, SCHEMA)
        self.written[number] = (split, write_shard(table, path, self.job.config.row_group_rows))
