"""The size of embeddings on disk, computed before they are built.

N rows, K augmentations, C captions in total, D_i and D_t the teacher's widths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow.compute as pc

from siclip.errors import UserError
from siclip_platform.datasets.derived.embeddings.layout import EmbeddingLayout
from siclip_platform.datasets.manifest import Dataset
from siclip_platform.datasets.parquet import read_table
from siclip_platform.datasets.sidecar import Sidecar

BOX_BYTES = 16
SCALE_BYTES = 4
LEVEL_BYTES = 0.11
"""Per list element, for Parquet's levels; measured, as are the next two."""
GROUP_BYTES, FILE_BYTES = 100, 200
"""Per column of a row group (page header, footer) and of a file."""


@dataclass(frozen=True)
class Extent:
    """How much there is to embed.

    Attributes:
        rows: of the dataset.
        captions: of the rows and of the caption sets beside the dataset.
        groups: number of row groups.
        files: number of shards.
    """

    rows: int
    captions: int
    groups: int
    files: int


def extent(dataset: Dataset, splits: Sequence[str], sidecars: Sequence[Sidecar]) -> Extent:
    """Count the rows and captions of some splits in the files."""
    shards = [shard for split in splits for shard in dataset.shards(split)]
    beside = [shard for sidecar in sidecars for split in splits for shard in sidecar.shards(split)]
    captions = 0
    for shard in (*shards, *beside):
        lengths = pc.list_value_length(read_table(shard, ["captions"])["captions"])
        captions += pc.sum(lengths).as_py() or 0
    groups = [group for split in splits for group in dataset.groups(split)]
    return Extent(sum(map(sum, groups)), captions, sum(map(len, groups)), len(shards))


def expected_bytes(layout: EmbeddingLayout, what: Extent) -> dict[str, float]:
    """Return part → bytes: N·K·D_i and C·D_t numbers, N·K boxes, for int8 N·K + C scales, and Parquet's overhead."""
    image, text = layout.vector_bytes
    crops = what.rows * layout.augmentations
    parts: dict[str, float] = {
        "image embeddings": crops * image,
        "text embeddings": what.captions * text,
        "crop boxes": crops * BOX_BYTES,
    }
    # Elements of list columns: four numbers per box, one vector per caption.
    listed = 4 * crops + what.captions
    if layout.numbers == "int8":
        parts["scales"] = (crops + what.captions) * SCALE_BYTES
        listed += crops + what.captions
    columns = len(layout.schema)
    parts["Parquet"] = listed * LEVEL_BYTES + columns * (what.groups * GROUP_BYTES + what.files * FILE_BYTES)
    return parts


def check_budget(parts: dict[str, float], budget: int | None) -> None:
    """Check that the parts fit into ``budget`` bytes (None: no limit).

    Raises:
        UserError: they do not; the message states the sizes.
    """
    total = sum(parts.values())
    if budget is not None and total > budget:
        largest = max(parts, key=lambda part: parts[part])
        raise UserError(
            f"the embeddings take {total / 1e9:.3f} GB, {parts[largest] / 1e9:.3f} GB of them {largest}, but the "
            f"disk budget is {budget / 1e9:.3f} GB: use fewer --augmentations, --numbers int8, fewer --captions, or "
            "a higher --disk-budget"
        )
