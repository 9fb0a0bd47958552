"""Read a split of a Parquet dataset: retrieval with all original captions, and composition with false captions.

Composition compares the first original caption with the false ones.
"""

from __future__ import annotations

from collections.abc import Iterator

from siclip.errors import UserError
from siclip.evaluation.composition import CompositionItem
from siclip_platform.datasets.manifest import open_dataset
from siclip_platform.datasets.negatives import negatives_of
from siclip_platform.datasets.parquet import parquet_file, read_table
from siclip_platform.evaluation.sets import CompositionData, EvaluationSample, RetrievalData, decode_as_training
from siclip_platform.storage import AnyPath
from siclip_platform.stream import original_captions


def read_dataset(folder: AnyPath, split: str) -> tuple[RetrievalData, CompositionData | None]:
    """Open a split; the composition set is None unless every sample's ``meta`` names negatives (`negatives_of`).

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
                        texts = tuple(original_captions(row["captions"]))
                        yield EvaluationSample(row["id"], row["image"], texts=texts)

    texts: dict[str, int] = {}
    items: list[CompositionItem] = []
    for shard in shards:
        for row in read_table(shard, ["captions", "meta"]).to_pylist():
            true = original_captions(row["captions"])[0]
            false = tuple(
                (kind, tuple(texts.setdefault(text, len(texts)) for text in given))
                for kind, given in negatives_of(row["meta"]).items()
            )
            items.append(CompositionItem(len(items), texts.setdefault(true, len(texts)), false))
    retrieval = RetrievalData(where, samples, decode_as_training)
    if not all(item.false for item in items):
        return retrieval, None
    return retrieval, CompositionData(where, samples, tuple(texts), tuple(items), decode=decode_as_training)
