"""Read a split of a Parquet dataset: retrieval with original captions, and composition with false captions."""

from __future__ import annotations

import json
from collections.abc import Iterator

from siclip.data.captions import ORIGINAL
from siclip.errors import UserError
from siclip.evaluation.composition import CompositionItem
from siclip_platform.datasets.manifest import open_dataset
from siclip_platform.datasets.parquet import parquet_file, read_table
from siclip_platform.evaluation.sets import CompositionData, EvaluationSample, RetrievalData, decode_as_training
from siclip_platform.storage import AnyPath


def read_dataset(folder: AnyPath, split: str) -> tuple[RetrievalData, CompositionData | None]:
    """Open a split; the composition set is None unless every sample's ``meta`` names negatives.

    Raises:
        UserError: the dataset cannot be read, or the split does not exist or is empty.
    """
    dataset = open_dataset(folder)
    shards = dataset.shards(split)
    if not dataset.rows(split):
        raise UserError(f"dataset {folder} has no samples in its split {split!r}: name another with --split")
    where = f"{folder.name}/{split}"

    def samples() -> Iterator[EvaluationSample]:
        for shard in shards:
            with parquet_file(shard) as file:
                for batch in file.iter_batches(256, columns=["id", "image", "captions"]):
                    for row in batch.to_pylist():
                        own = next((c for c in row["captions"] if c["source"] == ORIGINAL), row["captions"][0])
                        yield EvaluationSample(row["id"], row["image"], texts=(own["text"],))

    texts: dict[str, int] = {}
    items: list[CompositionItem] = []
    for shard in shards:
        for row in read_table(shard, ["captions", "meta"]).to_pylist():
            negatives = json.loads(row["meta"] or "{}").get("negatives", {})
            true = next((c for c in row["captions"] if c["source"] == ORIGINAL), row["captions"][0])["text"]
            false = tuple((category, (texts.setdefault(text, len(texts)),)) for category, text in negatives.items())
            items.append(CompositionItem(len(items), texts.setdefault(true, len(texts)), false))
    retrieval = RetrievalData(where, samples, decode_as_training)
    if not all(item.false for item in items):
        return retrieval, None
    return retrieval, CompositionData(where, samples, tuple(texts), tuple(items), decode=decode_as_training)
