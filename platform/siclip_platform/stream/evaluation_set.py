"""Read the samples of an evaluation for a model."""

from __future__ import annotations

from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from siclip.config import ModelConfig
from siclip.data.captions import ORIGINAL
from siclip.data.images import decode_image
from siclip.data.transforms import fit_image
from siclip.errors import UserError
from siclip.evaluation.evaluate import EvaluationSet
from siclip.tokenizer import tokenize
from siclip_platform.datasets.manifest import Dataset, open_dataset, read_manifest
from siclip_platform.datasets.negatives import negatives_of
from siclip_platform.datasets.parquet import read_table
from siclip_platform.recipes.recipe import Recipe
from siclip_platform.storage import AnyPath, as_path, in_threads


def validation_set(recipe: Recipe, model: ModelConfig) -> EvaluationSet:
    """Read the samples of the validation split that a recipe evaluates on.

    Raises:
        UserError: the dataset cannot be read or has no validation split.
    """
    evaluation = recipe.evaluation
    folder = as_path(recipe.data.path).absolute()
    dataset = Dataset(folder, read_manifest(folder))
    if dataset.split_names and not ("validation" in dataset.split_names and dataset.rows("validation")):
        raise UserError(
            f"dataset {folder} has no split 'validation', on which every training is evaluated: it has "
            f"{', '.join(dataset.split_names)}. Import it again with --validation-share 0.01, or name the source of "
            "that split with --split validation=PATTERN"
        )
    return load_evaluation_set(
        recipe.data.path, "validation", model, evaluation.validation_samples, evaluation.subset_seed
    )


def load_evaluation_set(
    folder: str | AnyPath, split: str, model: ModelConfig, limit: int = 0, subset_seed: int | None = None
) -> EvaluationSet:
    """Read samples of a split for a model.

    Each image has all of its original captions, as in CLIP_benchmark. If every sample's ``meta`` names the same
    number of negatives (`negatives_of`), it has those too.

    Args:
        folder: the dataset.
        split: the split's name.
        model: decides image size and context length.
        limit: the number of samples; 0 for all.
        subset_seed: draws the samples; None for the first ones.

    Raises:
        UserError: the dataset cannot be read or has no such split.
    """
    dataset = open_dataset(folder)
    return _load_evaluation(
        dataset.folder, dataset.hash, split, limit, subset_seed, model.image.image_size, model.text.context_length
    )


# trials in one process evaluate on the same samples, and decoding them takes seconds
@lru_cache(maxsize=4)
def _load_evaluation(
    folder: AnyPath,
    dataset_hash: str,
    split: str,
    limit: int,
    subset_seed: int | None,
    image_size: int,
    context_length: int,
) -> EvaluationSet:
    # open_dataset has just checked every shard; it need not be done twice
    shards = Dataset(folder, read_manifest(folder)).shards(split)
    table = pa.concat_tables(in_threads(read_table, shards, folder))
    rows = _chosen(table, limit, subset_seed).to_pylist()
    texts = [original_captions(row["captions"]) for row in rows]
    owner = None
    if any(len(own) != 1 for own in texts):
        owner = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(list(map(len, texts))))
    negatives = [list(chain(*negatives_of(row["meta"]).values())) for row in rows]
    # one tensor needs the same number for every sample
    counts = {len(captions) for captions in negatives}
    tokens = None
    if len(counts) == 1 and counts != {0}:
        flat = tokenize([text for captions in negatives for text in captions], context_length)
        tokens = flat.view(len(rows), -1, context_length)
    images = torch.from_numpy(_images(rows, image_size))
    captions = tokenize(list(chain(*texts)), context_length)
    return EvaluationSet(images=images, tokens=captions, negatives=tokens, image_of_text=owner)


def _chosen(table: pa.Table, limit: int, subset_seed: int | None) -> pa.Table:
    """At most ``limit`` rows (0: all), in their order."""
    if subset_seed is None or not 0 < limit < table.num_rows:
        return table.slice(0, limit or None)
    # sorted, so that the samples keep the order of the split
    drawn = np.random.default_rng(subset_seed).choice(table.num_rows, limit, replace=False)
    return table.take(pa.array(np.sort(drawn)))


def original_captions(captions: list[dict[str, str]]) -> list[str]:
    """The original captions of a sample in their order; all captions if none is original."""
    return [c["text"] for c in captions if c["source"] == ORIGINAL] or [c["text"] for c in captions]


def _images(rows: list[dict[str, Any]], size: int) -> np.ndarray:
    return np.stack([fit_image(decode_image(row["image"], f"sample {row['id']}"), size) for row in rows])
