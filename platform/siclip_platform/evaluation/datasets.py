"""A split of a dataset of ours: retrieval with each image's original caption, and its false captions by kind."""

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
    """
    Raises:
        UserError: the dataset cannot be read, or the split is not there or empty.
    """
    dataset = open_dataset(folder)
    shards = dataset.shards(split)
    if not dataset.rows(split):
        raise UserError(f"dataset {folder} has no samples in its split {split!r}: name another with --split")
    place = f"{folder.name}/{split}"

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
            false = tuple((kind, (texts.setdefault(text, len(texts)),)) for kind, text in negatives.items())
            items.append(CompositionItem(len(items), texts.setdefault(true, len(texts)), false))
    retrieval = RetrievalData(place, samples, decode_as_training)
    if not all(item.false for item in items):
        return retrieval, None
    return retrieval, CompositionData(place, samples, tuple(texts), tuple(items), decode=decode_as_training)
