"""One part of a source → shards of the good rows, a ledger of the others, and keys for finding duplicates."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import posixpath
from collections.abc import Mapping
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from siclip.config import Config
from siclip.errors import UserError
from siclip_platform.datasets.derived.stage import Task, TaskOutput
from siclip_platform.datasets.importing.beside import (
    BesideConfig,
    BesideRow,
    BesideShard,
    beside_entries,
    beside_row,
)
from siclip_platform.datasets.importing.images import ImageRules, prepare_image
from siclip_platform.datasets.importing.ledger import LEDGER_SCHEMA, ledger_file, ledger_row, storable
from siclip_platform.datasets.importing.sources.access import Access
from siclip_platform.datasets.importing.sources.part import SourcePart, read_samples
from siclip_platform.datasets.importing.sources.sample import Caption, Reason, Rejection, SourceSample
from siclip_platform.datasets.manifest import write_shard
from siclip_platform.datasets.schema import ORIGINAL, SCHEMA, SYNTHETIC
from siclip_platform.storage.atomic import replacing

VALIDATION, TEST = "validation", "test"
ORDER = pa.field("order", pa.int64())  # of the sample in its part
MERGED = pa.struct([("order", pa.int64()), ("id", pa.string()), ("place", pa.string())])
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
        pa.field("image", pa.binary(32)),  # rows with equal ones are one image; null: never merged
        pa.field("merged", pa.list_(MERGED)),  # rows whose captions were added to this one
        pa.field("captions", pa.list_(pa.binary(16))),  # hashes, if the split is drawn by caption
        pa.field("drawn", pa.bool_()),  # whether the row may be drawn for validation by its captions
    ]
)


class ImportConfig(Config):
    """Settings of an import.

    Attributes:
        split: of rows whose source names no split.
        validation_share: of the samples of ``split`` that go to validation, drawn by the bytes of their images.
        test_share: of them that go to test.
        share_by: ``caption``: samples that share a caption or an image are also drawn together.
        images: how images are checked and stored.
        prefix_ids: prefix each id with its file's name.
        shard_rows: maximum rows per shard.
        row_group_rows: rows per row group.
        drop_duplicates: drop images with the same bytes.
        near_duplicates: drop images whose 64-bit perceptual hashes differ in at most this many bits.
        beside: the caption set and the embedding set that the source brings; None: what it brings is not read.
    """

    split: str = Field("train", pattern="^[a-z][a-z0-9_]*$")
    validation_share: float = Field(0, ge=0, lt=1)
    test_share: float = Field(0, ge=0, lt=1)
    share_by: Literal["image", "caption"] = "image"
    images: ImageRules = ImageRules()
    prefix_ids: bool = False
    shard_rows: int = Field(10_000, ge=1, le=10_000_000)
    row_group_rows: int = Field(250, ge=1, le=1_000_000)
    drop_duplicates: bool = False
    near_duplicates: int | None = Field(None, ge=0, le=8)
    beside: BesideConfig | None = None

    @property
    def shares(self) -> dict[str, float]:
        """Split → share of the samples of ``split`` that is drawn for it."""
        given = {VALIDATION: self.validation_share, TEST: self.test_share}
        return {split: share for split, share in given.items() if share}

    @property
    def by_caption(self) -> bool:
        return self.share_by == "caption" and bool(self.shares)

    @model_validator(mode="after")
    def _shares_leave_something(self) -> ImportConfig:
        if self.validation_share + self.test_share >= 1:
            raise ValueError("validation_share and test_share leave nothing for training: their sum must be below 1")
        return self

    @model_serializer(mode="wrap")
    def _stored(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Omit what is not used, so that equal imports give equal hashes as before."""
        tree: dict[str, Any] = dump(self)
        for name in ("test_share", "beside"):
            if not getattr(self, name):
                del tree[name]
        return tree


class PartJob(Config):
    """The payload of a task. Its digest is stored with the finished task.

    Attributes:
        root: of the source.
        number: index of the part.
        piece: the part; the stored digest depends on the name of this field.
        config: settings of the import.
        access: what rows may name besides the files in the source's folder.
        rows: read only this many, the first; None: all.
        label: tells the files of this root from those of others.
    """

    root: str
    number: int
    piece: SourcePart
    config: ImportConfig
    access: Access = Access()
    rows: int | None = None
    label: str = ""

    def payload(self) -> dict[str, Any]:
        """The payload of the task; without what is not used, so that older imports resume."""
        unused = {name for name in ("rows", "label") if not getattr(self, name)}
        return self.model_dump(mode="json", exclude=unused)


def libraries() -> dict[str, str]:
    """Return the versions of the libraries that the bytes of images and shards depend on."""
    return {name: importlib.metadata.version(name) for name in ("pillow", "pyarrow", "simplejpeg")}


def import_part(folder: Path, task: Task) -> TaskOutput:
    """Import a part; the result has the rows ``read`` and ``merged``, ``reasons`` (reason → rows), the ``shards``."""
    job = PartJob.model_validate(task.payload)
    rows = _Rows(folder, job)
    ledger_name, keys_name = f"ledger-{job.number:05d}.parquet", f"keys-{job.number:05d}.parquet"
    order = -1
    with ledger_file(folder / ledger_name, pa.schema([ORDER, *LEDGER_SCHEMA])) as ledger:
        for order, found in enumerate(islice(read_samples(job.root, job.piece, job.access), job.rows)):
            sample = _labelled(found, job.label)
            try:
                rows.add(order, sample)
            except Rejection as rejection:
                ledger.add({"order": order, **ledger_row(sample, rejection)})
    rows.shards.close()
    with replacing(folder / keys_name) as temporary:
        pq.write_table(pa.Table.from_pylist(rows.keys, KEYS_SCHEMA), temporary, compression="zstd")
    entries = rows.shards.entries
    return TaskOutput(
        files=(ledger_name, keys_name, *chain.from_iterable(map(files_of, entries))),
        result={
            "read": order + 1,
            "merged": rows.merged,
            "reasons": dict(sorted(ledger.reasons.items())),
            "shards": entries,
        },
    )


def files_of(shard: Mapping[str, Any]) -> list[str]:
    """Return the names of a shard's file and of those beside it, from a result of either stage."""
    name = str(shard["path"])
    return [name, *(f"{kind}-{name}" for kind in beside_entries(shard))]


def _labelled(sample: SourceSample, label: str) -> SourceSample:
    """Name the source's folder in the file's name, and in an id that was made of that name."""
    if not label:
        return sample
    own = sample.id == f"{posixpath.splitext(sample.source)[0]}:{sample.location}"
    return replace(
        sample, source=f"{label}/{sample.source}".rstrip("/"), id=f"{label}/{sample.id}" if own else sample.id
    )


class _Rows:
    """The good rows of a part: rows of one image become one sample with several captions.

    Attributes:
        shards: that the rows are written to.
        keys: rows of `KEYS_SCHEMA`.
        merged: number of rows that were added to earlier ones.
    """

    def __init__(self, folder: Path, job: PartJob) -> None:
        self.job = job
        self.shards = _Shards(folder, job)
        self.keys: list[dict[str, Any]] = []
        self.merged = 0
        self._ids: dict[str, bytes | None] = {}  # id → image
        self._images: dict[bytes, int] = {}  # image → index in keys

    def add(self, order: int, sample: SourceSample) -> None:
        """Add a row.

        Raises:
            Rejection: the row cannot be used.
        """
        config = self.job.config
        if sample.rejected:
            raise sample.rejected
        split = _split(sample, self.job)
        image = _image_key(sample, split, config)
        if image in self._images and self._merge(self.keys[self._images[image]], order, sample):
            return
        row, pixels = make_row(sample, config)
        # Duplicates within a part; those of other parts, and further rows of an image, are found by the second stage.
        if row["id"] in self._ids and (image is None or self._ids[row["id"]] != image):
            raise Rejection(Reason.DUPLICATE_ID, f"{row['id']!r} stands earlier in {sample.source}")
        self._ids[row["id"]] = image
        beside = None
        if config.beside is not None:
            if sample.reinforcement is None:
                raise Rejection(Reason.DAMAGED_ROW, "there are no captions and embeddings beside the image")
            stored = (row["height"], row["width"], config.beside)
            beside = beside_row(sample.reinforcement, sample.image or b"", *stored)
        shard, number = self.shards.add(split, row, beside)
        by_caption = config.by_caption
        key = {
            "order": order,
            "shard": shard,
            "row": number,
            "id": row["id"],
            "sha256": hashlib.sha256(sample.image or b"").digest(),
            "phash": perceptual_hash(pixels) if config.near_duplicates is not None else None,
            "bytes": len(sample.image or b""),
            "source": storable(sample.source),
            "place": storable(sample.location),
            "image": image,
            "merged": [],
            "captions": [_caption_key(c.text) for c in sample.captions] if by_caption else [],
            "drawn": by_caption and split == config.split,
        }
        if image is not None:
            self._images[image] = len(self.keys)
        self.keys.append(key)

    def _merge(self, key: dict[str, Any], order: int, sample: SourceSample) -> bool:
        """Add the captions to an earlier row of the image; False if its shard is already written."""
        row = self.shards.row(key["shard"], key["row"])
        if row is None:
            return False
        row["captions"] = add_captions(row["captions"], [_caption(caption) for caption in sample.captions])
        key["merged"].append({"order": order, "id": storable(sample.id), "place": storable(sample.location)})
        if key["drawn"]:
            key["captions"] = list(
                dict.fromkeys([*key["captions"], *(_caption_key(c.text) for c in sample.captions)])
            )
        self.merged += 1
        return True


def add_captions(captions: list[dict[str, Any]], more: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return ``captions`` and those of ``more`` that are not among them."""
    return captions + [caption for caption in more if caption not in captions]


def _caption_key(text: str) -> bytes:
    return hashlib.sha256(text.casefold().encode()).digest()[:16]


def _image_key(sample: SourceSample, split: str, config: ImportConfig) -> bytes | None:
    """Return what the rows of one image share. The split is part of it: a source's own splits are never mixed."""
    if sample.identity is None or (config.drop_duplicates and not sample.by_path):
        return None
    return hashlib.sha256(f"{split}\n{sample.identity}".encode(errors="surrogateescape")).digest()


def make_row(sample: SourceSample, config: ImportConfig) -> tuple[dict[str, Any], npt.NDArray[np.uint8]]:
    """Return a row of `SCHEMA` and the pixels of its image.

    Raises:
        Rejection: the sample cannot be used.
    """
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


def _split(sample: SourceSample, job: PartJob) -> str:
    config, part = job.config, job.piece
    named = (sample.split or part.split or sample.folder_split) if part.keep_splits else part.split
    split = named or config.split
    if named in config.shares:
        raise UserError(f"--{named}-share, but {sample.source} already has the split {named!r}: leave it out")
    if split != config.split or config.share_by == "caption":
        return split
    # By the image alone, so that the split does not depend on shards or order, and equal images are never in both.
    return drawn(hashlib.sha256(sample.image or b"").digest(), config.shares) or split


def drawn(digest: bytes, shares: Mapping[str, float]) -> str | None:
    """Return the split whose share a SHA-256 falls into; None: none of them."""
    position = int.from_bytes(digest[:8]) / 2**64
    for split, share in shares.items():
        if position < share:
            return split
        position -= share
    return None


class _OpenShard(NamedTuple):
    """A shard that is being filled: its index among the part's, its rows, and what is written beside them."""

    number: int
    name: str
    rows: list[dict[str, Any]]
    beside: BesideShard | None


class _Shards:
    """Collects rows into shards of at most ``shard_rows`` rows, separately for each split."""

    def __init__(self, folder: Path, job: PartJob) -> None:
        self.folder = folder
        self.job = job
        self.open: dict[str, _OpenShard] = {}
        self.written: dict[int, dict[str, Any]] = {}
        self.count = 0

    def add(self, split: str, row: dict[str, Any], beside: BesideRow | None = None) -> tuple[int, int]:
        """Add a row; return the index of its shard and its index in the shard."""
        if split not in self.open:
            self.open[split] = self._new(split)
            self.count += 1
        shard = self.open[split]
        shard.rows.append(row)
        if shard.beside is not None and beside is not None:
            shard.beside.add(beside)
        index = len(shard.rows) - 1
        if len(shard.rows) == self.job.config.shard_rows:
            self._write(split)
        return shard.number, index

    def row(self, shard: int, index: int) -> dict[str, Any] | None:
        """Return a row that was added; None if its shard is already written."""
        return next((each.rows[index] for each in self.open.values() if each.number == shard), None)

    def close(self) -> None:
        for split in list(self.open):
            self._write(split)

    @property
    def entries(self) -> list[dict[str, Any]]:
        """The shards: the fields of `ShardEntry`, ``split``, and ``beside`` (kind → entry) if there is something."""
        return [self.written[number] for number in range(self.count)]

    def _new(self, split: str) -> _OpenShard:
        config = self.job.config
        name = f"{split}-{self.job.number:05d}-{self.count:03d}.parquet"
        beside = BesideShard(self.folder, name, config.beside, config.row_group_rows) if config.beside else None
        return _OpenShard(self.count, name, [], beside)

    def _write(self, split: str) -> None:
        shard = self.open.pop(split)
        table = pa.Table.from_pylist(shard.rows, SCHEMA)
        entry = write_shard(table, self.folder / shard.name, self.job.config.row_group_rows)
        self.written[shard.number] = {"split": split, **entry.model_dump()}
        if shard.beside is not None:
            self.written[shard.number]["beside"] = shard.beside.close()
