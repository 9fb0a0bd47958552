"""Bytes on the disk, part by part.

N pairs, K image augmentations and C captions with stored teacher embeddings, D their width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow.compute as pc

from siclip_platform.datasets.manifest import open_dataset
from siclip_platform.datasets.parquet import parquet_file, read_table
from siclip_platform.storage import AnyPath

GB = 10**9
IMAGE_BYTES = 33_100
"""A JPEG of CC12M at 256 px: img2dataset's own example states 331 GB for 10 million images (its dataset_examples)."""
CAPTION_BYTES = 60
"""A synthetic caption of about a dozen words, as text."""
ROW_BYTES = 60
"""Id, sizes, category and Parquet's own bookkeeping of a row."""
NUMBER_BYTES = {"bf16": 2, "int8": 1}
SCALE_BYTES = 4
BOX_BYTES = 16
"""Of a stored crop: four 32-bit integers."""
RECORD_BYTES = 50 * 10**6
"""MLflow store, report and logs of a study."""


@dataclass(frozen=True)
class RowBytes:
    """What one pair takes without embeddings. ``other``: all but image and captions."""

    image: float = IMAGE_BYTES
    captions: float = 3 * CAPTION_BYTES
    other: float = ROW_BYTES
    source: str = "img2dataset's figures for CC12M at 256 px, not measured here"


def measure_rows(folder: str | AnyPath, split: str) -> RowBytes:
    """Bytes a row of a dataset, from the compressed sizes in its Parquet files.

    Raises:
        UserError: the dataset cannot be opened or has no such split.
    """
    dataset = open_dataset(folder)
    rows = dataset.rows(split)
    parts = {"image": 0, "captions": 0}
    for shard in dataset.shards(split):
        with parquet_file(shard) as file:
            metadata = file.metadata
        for group in range(metadata.num_row_groups):
            for column in range(metadata.num_columns):
                chunk = metadata.row_group(group).column(column)
                part = chunk.path_in_schema.partition(".")[0]
                if part in parts:
                    parts[part] += chunk.total_compressed_size
    total = sum(entry.bytes for entry in dataset.entries(split))
    return RowBytes(
        image=parts["image"] / rows,
        captions=parts["captions"] / rows,
        other=(total - sum(parts.values())) / rows,
        source=f"measured on {rows:,} rows of {folder}",
    )


def captions_a_row(folder: str | AnyPath, split: str) -> float:
    """Mean number of captions of a dataset's rows."""
    dataset = open_dataset(folder)
    counts = [
        pc.sum(pc.list_value_length(read_table(shard, ["captions"])["captions"])).as_py()
        for shard in dataset.shards(split)
    ]
    return float(sum(counts) / dataset.rows(split))


def embedding_bytes(augmentations: int, captions: float, width: int, numbers: str) -> float:
    """Of one pair: (K + C)·D numbers, K boxes, and with int8 a scale for each vector."""
    vectors = augmentations + captions
    scales = vectors * SCALE_BYTES if numbers == "int8" else 0
    return vectors * width * NUMBER_BYTES[numbers] + scales + augmentations * BOX_BYTES


def storage(
    pairs: int,
    rows: RowBytes,
    *,
    checkpoint_bytes: int,
    checkpoints: int,
    embeddings: float = 0.0,
    trunk_features: float = 0.0,
) -> Mapping[str, float]:
    """Part → bytes for ``pairs`` pairs; ``embeddings`` and ``trunk_features``: bytes of one pair."""
    parts = {
        "images": pairs * rows.image,
        "captions": pairs * rows.captions,
        "rows and index": pairs * rows.other,
        "teacher embeddings": pairs * embeddings,
        "trunk features": pairs * trunk_features,
        "checkpoints": float(checkpoints * checkpoint_bytes),
        "records": float(RECORD_BYTES),
    }
    return {part: size for part, size in parts.items() if size}
