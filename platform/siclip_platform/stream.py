"""Parquet → batches: the same samples in the same order through Ray Data and in-process.

`siclip.data.order.SampleOrder` owns the order; a piece of it is read, decoded and tokenized by one function,
`Stream.columns`, which Ray Data maps over pieces and the in-process way simply calls.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from siclip.config import ModelConfig
from siclip.data.background import InBackground
from siclip.data.batch import Batch
from siclip.data.captions import ORIGINAL, choose_caption, stable_id
from siclip.data.images import decode_image
from siclip.data.order import Piece, RowGroup, SampleOrder
from siclip.data.transforms import fit_image
from siclip.evaluation.evaluate import EvaluationSet
from siclip.models.registry import model_config
from siclip.tokenizer import tokenize
from siclip_platform.cluster import DATA_CPUS
from siclip_platform.datasets.manifest import Dataset, open_dataset
from siclip_platform.recipe import Recipe

Columns = dict[str, np.ndarray]


@dataclass(frozen=True)
class Stream:
    """How a recipe reads a split: picklable, so that Ray tasks can carry it."""

    shards: tuple[Path, ...]
    order: SampleOrder
    synthetic_share: float
    seed: int
    image_size: int
    context_length: int
    concurrent_reads: int

    @classmethod
    def of(cls, recipe: Recipe, model: ModelConfig, split: str = "train") -> Stream:
        """The training stream of a recipe for a model's image size.

        Captions have the context length that the model has by its name: a student with a shorter one cuts them,
        and its teacher sees them whole.

        Raises:
            UserError: the dataset is missing, damaged or does not match the schema.
        """
        shards = tuple(open_dataset(Path(recipe.data.path)).shards(split))
        groups = [group for index, shard in enumerate(shards) for group in _row_groups(index, shard)]
        seed = recipe.training.seed
        return cls(
            shards=shards,
            order=SampleOrder(groups, seed, recipe.data.window_row_groups),
            synthetic_share=recipe.data.synthetic_share,
            seed=seed,
            image_size=model.image.image_size,
            context_length=max(model.text.context_length, model_config(model.name).text.context_length),
            concurrent_reads=recipe.data.concurrent_reads,
        )

    def columns(self, piece: Piece) -> Columns:
        """Read, decode and tokenize one piece: the columns of `Batch`, in order of delivery."""
        table = pa.concat_tables(
            pq.ParquetFile(self.shards[group.shard]).read_row_group(group.index) for group in piece.groups
        )
        rows = table.take(pa.array(self.order.rows_of(piece))).select(["id", "image", "captions"]).to_pylist()
        texts = [
            choose_caption(row["captions"], self.synthetic_share, self.seed, piece.epoch, row["id"]) for row in rows
        ]
        return {
            "images": _images(rows, self.image_size),
            "tokens": tokenize(texts, self.context_length).numpy().astype(np.int32),
            "image_ids": np.array([stable_id(row["id"]) for row in rows]),
            "caption_ids": np.array([stable_id(text) for text in texts]),
        }

    def batches(self, batch_size: int, start: int, stop: int) -> Iterator[Batch]:
        """In-process: batches of the positions start ≤ p < stop."""
        return map(Batch.from_arrays, regrouped(map(self.columns, self.order.pieces(start, stop)), batch_size))

    def ray_dataset(self, start: int, stop: int) -> Any:
        """A `ray.data.Dataset` of the same samples in the same order, one task per piece."""
        import ray

        pieces = tuple(self.order.pieces(start, stop))

        def read(row: Mapping[str, Any]) -> Columns:
            return self.columns(pieces[int(row["id"][0])])

        dataset = ray.data.range(len(pieces), override_num_blocks=len(pieces))
        tasks = ray.data.TaskPoolStrategy(size=self.concurrent_reads)
        return dataset.map_batches(read, batch_size=1, batch_format="numpy", num_cpus=DATA_CPUS, compute=tasks)


def shard_batches(shard: Any, batch_size: int) -> Iterator[Batch]:
    """Batches of a Ray Train dataset shard. Reading starts at once, in the background."""
    columns = shard.iter_batches(batch_size=batch_size, batch_format="numpy", prefetch_batches=2)
    return InBackground(map(Batch.from_arrays, columns))


def validation_set(recipe: Recipe, model: ModelConfig) -> EvaluationSet:
    """The first samples of the validation split, as many as the recipe's evaluation looks at."""
    return load_evaluation_set(Path(recipe.data.path), "validation", model, recipe.evaluation.validation_samples)


def load_evaluation_set(folder: Path, split: str, model: ModelConfig, limit: int = 0) -> EvaluationSet:
    """The first ``limit`` samples of a split (0: all), read for a model.

    Each image stands with its original caption and, where ``meta`` names negatives, with those.

    Raises:
        UserError: the dataset cannot be read or has no such split.
    """
    dataset = open_dataset(folder)
    return _load_evaluation(
        dataset.folder, dataset.hash, split, limit, model.image.image_size, model.text.context_length
    )


@lru_cache(maxsize=4)
def _load_evaluation(
    folder: Path, dataset_hash: str, split: str, limit: int, image_size: int, context_length: int
) -> EvaluationSet:
    dataset: Dataset = open_dataset(folder)
    table = pa.concat_tables(pq.read_table(shard) for shard in dataset.shards(split))
    rows = table.slice(0, limit or None).to_pylist()
    texts = [_original(row["captions"]) for row in rows]
    negatives = [list(json.loads(row["meta"] or "{}").get("negatives", {}).values()) for row in rows]
    counts = {len(captions) for captions in negatives}
    tokens = None
    if len(counts) == 1 and counts != {0}:
        flat = tokenize([text for captions in negatives for text in captions], context_length)
        tokens = flat.view(len(rows), -1, context_length)
    images = torch.from_numpy(_images(rows, image_size))
    return EvaluationSet(images=images, tokens=tokenize(texts, context_length), negatives=tokens)


def _original(captions: list[dict[str, str]]) -> str:
    return next((c["text"] for c in captions if c["source"] == ORIGINAL), captions[0]["text"])


def _row_groups(index: int, shard: Path) -> list[RowGroup]:
    metadata = pq.read_metadata(shard)
    return [RowGroup(index, i, metadata.row_group(i).num_rows) for i in range(metadata.num_row_groups)]


def _images(rows: list[dict[str, Any]], size: int) -> np.ndarray:
    return np.stack([fit_image(decode_image(row["image"], f"sample {row['id']}"), size) for row in rows])


def regrouped(pieces: Iterable[Columns], size: int) -> Iterator[Columns]:
    """Pieces of any length as pieces of ``size``; what is left at the end is a last, shorter one."""
    held: Columns = {}
    for piece in pieces:
        held = {k: np.concatenate([held[k], v]) for k, v in piece.items()} if held else piece
        while len(held["tokens"]) >= size:
            yield {k: v[:size] for k, v in held.items()}
            held = {k: v[size:] for k, v in held.items()}
    if held and len(held["tokens"]):
        yield held
