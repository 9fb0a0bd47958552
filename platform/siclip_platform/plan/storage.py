"""Bytes on disk, part by part.

K: stored augmentations per image. C: captions per image with stored embeddings. D: width of the embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from siclip_platform.datasets.manifest import open_dataset
from siclip_platform.datasets.parquet import parquet_file
from siclip_platform.storage import AnyPath

GB = 10**9
IMAGE_BYTES = 33_100
"""A JPEG of CC12M at 256 px: img2dataset's dataset_examples state 331 GB for 10 million images."""
CAPTION_BYTES = 60
"""A synthetic caption of about a dozen words, as text."""
ROW_BYTES = 60
"""Id, sizes, category and Parquet's metadata of a row."""
NUMBER_BYTES = {"bf16": 2, "int8": 1}
SCALE_BYTES = 4
BOX_BYTES = 16
"""A stored crop: four 32-bit integers."""
RECORD_BYTES = 50 * 10**6
"""MLflow store, report and logs of a study, rounded up."""


@dataclass(frozen=True)
class RowBytes:
    """Bytes per pair without embeddings.

    Attributes:
        image: the encoded image.
        captions: all captions.
        other: everything else in a row.
        source: where these numbers come from.
    """

    image: float = IMAGE_BYTES
    captions: float = 3 * CAPTION_BYTES
    other: float = ROW_BYTES
    source: str = "img2dataset's figures for CC12M at 256 px, not measured here"


def measure_rows(folder: str | AnyPath, split: str) -> RowBytes:
    """Bytes per row of a dataset, from the compressed sizes in its Parquet files.

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
                # The columns of captions are nested: captions.list.element.text.
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


def embedding_bytes(augmentations: int, captions: float, width: int, numbers: str) -> float:
    """Bytes per pair: (K + C)·D numbers, K boxes, and with int8 a scale per vector."""
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
    """Part → bytes on disk.

    Args:
        pairs: samples of the dataset.
        rows: bytes per sample.
        checkpoint_bytes: size of a checkpoint.
        checkpoints: number of checkpoints that are kept.
        embeddings: bytes of teacher embeddings per pair.
        trunk_features: bytes of stored trunk outputs per pair.
    """
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
