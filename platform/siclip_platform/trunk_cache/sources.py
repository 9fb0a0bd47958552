"""What a trunk cache computes: the two trunks, and the images and captions of a split that go through them.

Shapes: B batch, C width of a tower, h×w the grid of the attention stage, T context length, K variants of an image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from siclip.data.batch import to_float_images
from siclip.data.captions import stable_id
from siclip.data.images import decode_image
from siclip.data.transforms import TRAIN_SCALE, fit_image
from siclip.models.clip import Clip
from siclip.tokenizer import tokenize
from siclip_platform.datasets.manifest import Dataset

Ids = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Source:
    """A tower's trunk and its inputs, numbered from 0 to ``rows``.

    ``inputs(start, stop)`` gives (ids (B,), input of the trunk) batch by batch, ``trunk`` maps an input to features
    (B, *shape). ``together`` inputs, from a multiple of it on, belong to one sample.
    """

    name: str
    rows: int
    together: int
    shape: torch.Size
    inputs: Callable[[int, int], Iterator[tuple[Ids, Tensor]]]
    trunk: Callable[[Tensor], Tensor]

    @property
    def row_bytes(self) -> int:
        """Of the features of one input, in bf16."""
        return self.shape.numel() * 2


def image_source(model: Clip, dataset: Dataset, split: str, augmentations: int, seed: int, batch: int) -> Source:
    """The images of a split in file order, each with its K variants: (B, size, size, 3) uint8 → (B, C, h, w)."""
    size, device = model.config.image.image_size, model.logit_scale.device

    def inputs(start: int, stop: int) -> Iterator[tuple[Ids, Tensor]]:
        rows = _rows(dataset, split, start // augmentations, stop // augmentations)
        while some := list(islice(rows, max(1, batch // augmentations))):
            ids = np.repeat([stable_id(row["id"]) for row in some], augmentations)
            variants = [image for row in some for image in _variants(row, size, augmentations, seed)]
            yield ids, torch.from_numpy(np.stack(variants))

    def trunk(pixels: Tensor) -> Tensor:
        return model.image_encoder.trunk(to_float_images(pixels.to(device)))

    shape = trunk(torch.zeros(1, size, size, 3, dtype=torch.uint8)).shape[1:]
    return Source("images", dataset.rows(split) * augmentations, augmentations, shape, inputs, trunk)


def text_source(model: Clip, dataset: Dataset, split: str, batch: int) -> Source:
    """Every caption of a split once, in order of first appearance: token ids (B, T) → (B, T, C)."""
    length, device = model.config.text.context_length, model.logit_scale.device
    captions = _unique_captions(dataset, split)

    def inputs(start: int, stop: int) -> Iterator[tuple[Ids, Tensor]]:
        for first in range(start, stop, batch):
            some = captions[first : min(first + batch, stop)]
            yield np.array([stable_id(text) for text in some]), tokenize(some, length)

    def trunk(tokens: Tensor) -> Tensor:
        return model.text_encoder.trunk(tokens.to(device))

    shape = trunk(torch.zeros(1, length, dtype=torch.long)).shape[1:]
    return Source("texts", len(captions), 1, shape, inputs, trunk)


def random_crop(image: Pixels, size: int, seed: int) -> Pixels:
    """(height, width, 3) uint8 → (size, size, 3) uint8: the training crop of `siclip.data.transforms.preprocess`.

    The seed alone decides which one; torch's global generator is left as it was.
    """
    from torchvision.transforms import InterpolationMode, RandomResizedCrop

    crop = RandomResizedCrop(size, scale=TRAIN_SCALE, interpolation=InterpolationMode.BILINEAR)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return np.asarray(crop(Image.fromarray(image)))


def _variants(row: dict[str, Any], size: int, augmentations: int, seed: int) -> list[Pixels]:
    pixels = decode_image(row["image"], f"sample {row['id']}")
    if augmentations == 1:
        return [fit_image(pixels, size)]
    return [random_crop(pixels, size, stable_id(f"{seed}/{row['id']}/{k}")) for k in range(augmentations)]


def _rows(dataset: Dataset, split: str, start: int, stop: int) -> Iterator[dict[str, Any]]:
    """``id`` and ``image`` of the samples start ≤ i < stop of a split, in file order."""
    position = 0
    for entry, shard in zip(dataset.entries(split), dataset.shards(split), strict=True):
        if position + entry.rows <= start or position >= stop:
            position += entry.rows
            continue
        with pq.ParquetFile(shard) as file:
            for index in range(file.num_row_groups):
                rows = file.metadata.row_group(index).num_rows
                first, last = max(start - position, 0), min(stop - position, rows)
                if first < last:
                    group = file.read_row_group(index, columns=["id", "image"])
                    yield from group.slice(first, last - first).to_pylist()
                position += rows


def _unique_captions(dataset: Dataset, split: str) -> list[str]:
    seen: dict[str, None] = {}
    for shard in dataset.shards(split):
        captions = pq.read_table(shard, columns=["captions"])["captions"].combine_chunks()
        seen |= dict.fromkeys(pc.struct_field(pc.list_flatten(captions), "text").to_pylist())
    return list(seen)
