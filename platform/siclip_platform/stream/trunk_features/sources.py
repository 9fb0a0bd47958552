"""What a trunk cache computes: the two trunks, applied to the images and captions of a split.

Shapes: B batch, C width of a tower, h×w the grid of the attention stage, T context length, K variants of an image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import torch
from PIL import Image
from torch import Tensor

from siclip.data.augment import load_crop, replay_operations
from siclip.data.batch import to_float_images
from siclip.data.captions import stable_id
from siclip.data.images import decode_image
from siclip.data.transforms import TRAIN_SCALE, fit_image
from siclip.models.clip import Clip
from siclip.tokenizer import tokenize
from siclip_platform.datasets.manifest import Dataset
from siclip_platform.datasets.parquet import parquet_file, read_table
from siclip_platform.datasets.sidecar import Sidecar
from siclip_platform.storage import AnyPath
from siclip_platform.stream.stored import stored_operations
from siclip_platform.stream.trunk_features.key import TrunkCacheKey

Ids = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]
CROPS = ("boxes", "operations", "magnitudes")
"""Columns of an embedding set that say how its images were made."""


@dataclass(frozen=True)
class FeatureSource:
    """A tower's trunk and its inputs.

    Attributes:
        name: ``images`` or ``texts``, the beginning of a shard's name.
        rows: the number of inputs.
        together: consecutive inputs of one sample; no shard separates them.
        shape: of the features of one input.
        inputs: (start, stop) → batches of (ids (B,), input of the trunk) of the inputs start ≤ i < stop.
        trunk: an input → features (B, *shape).
    """

    name: str
    rows: int
    together: int
    shape: torch.Size
    inputs: Callable[[int, int], Iterator[tuple[Ids, Tensor]]]
    trunk: Callable[[Tensor], Tensor]

    @property
    def row_bytes(self) -> int:
        """The bytes of one input's features in bf16."""
        return self.shape.numel() * 2


def image_source(
    model: Clip, dataset: Dataset, split: str, key: TrunkCacheKey, crops: Sidecar | None, batch: int
) -> FeatureSource:
    """Return the images of a split in file order, with K variants each: (B, size, size, 3) uint8 → (B, C, h, w)."""
    device, augmentations = model.logit_scale.device, key.augmentations

    def inputs(start: int, stop: int) -> Iterator[tuple[Ids, Tensor]]:
        rows = _rows(dataset, split, start // augmentations, stop // augmentations, crops)
        while some := list(islice(rows, max(1, batch // augmentations))):
            ids = np.repeat([stable_id(row["id"]) for row in some], augmentations)
            variants = [image for row in some for image in _variants(row, key)]
            yield ids, torch.from_numpy(np.stack(variants))

    def trunk(pixels: Tensor) -> Tensor:
        return model.image_encoder.trunk(to_float_images(pixels.to(device)))

    # one pass gives the grid of the attention stage, which depends on the image size
    shape = trunk(torch.zeros(1, key.image_size, key.image_size, 3, dtype=torch.uint8)).shape[1:]
    return FeatureSource("images", dataset.rows(split) * augmentations, augmentations, shape, inputs, trunk)


def text_source(model: Clip, dataset: Dataset, split: str, sets: Sequence[Sidecar], batch: int) -> FeatureSource:
    """Return every caption of a split and of its caption sets once: token ids (B, T) → (B, T, C)."""
    length, device = model.config.text.context_length, model.logit_scale.device
    shards = [*dataset.shards(split), *(path for sidecar in sets for path in sidecar.shards(split))]
    captions = _unique_captions(shards)

    def inputs(start: int, stop: int) -> Iterator[tuple[Ids, Tensor]]:
        for first in range(start, stop, batch):
            some = captions[first : min(first + batch, stop)]
            yield np.array([stable_id(text) for text in some]), tokenize(some, length)

    def trunk(tokens: Tensor) -> Tensor:
        return model.text_encoder.trunk(tokens.to(device))

    shape = trunk(torch.zeros(1, length, dtype=torch.long)).shape[1:]
    return FeatureSource("texts", len(captions), 1, shape, inputs, trunk)


def random_crop(image: Pixels, size: int, seed: int) -> Pixels:
    """Return the training crop of `siclip.data.transforms.preprocess`: (height, width, 3) → (size, size, 3) uint8.

    The seed alone decides the crop; torch's global generator keeps its state.
    """
    from torchvision.transforms import InterpolationMode, RandomResizedCrop

    # torchvision draws from the global generator and takes no other
    crop = RandomResizedCrop(size, scale=TRAIN_SCALE, interpolation=InterpolationMode.BILINEAR)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return np.asarray(crop(Image.fromarray(image)))


def _variants(row: dict[str, Any], key: TrunkCacheKey) -> list[Pixels]:
    where, size = f"sample {row['id']}", key.image_size
    if "boxes" in row:
        boxes = np.array(row["boxes"]).reshape(-1, 4).tolist()
        crops = [load_crop(row["image"], where, size, tuple(box)) for box in boxes]
        if "operations" not in row:
            return crops
        done = stored_operations(row["operations"], row["magnitudes"], len(crops))
        return [replay_operations(crop, each) for crop, each in zip(crops, done, strict=True)]
    pixels = decode_image(row["image"], where)
    if key.augmentations == 1:
        return [fit_image(pixels, size)]
    seeds = (stable_id(f"{key.augmentation_seed}/{row['id']}/{k}") for k in range(key.augmentations))
    return [random_crop(pixels, size, seed) for seed in seeds]


def _rows(
    dataset: Dataset, split: str, start: int, stop: int, crops: Sidecar | None = None
) -> Iterator[dict[str, Any]]:
    """``id``, ``image`` and, with ``crops``, `CROPS` of the samples start ≤ i < stop of a split, in file order."""
    position = 0
    for shard, (entry, path) in enumerate(zip(dataset.entries(split), dataset.shards(split), strict=True)):
        # the manifest's counts show which shards need not be opened
        if position + entry.rows <= start or position >= stop:
            position += entry.rows
            continue
        with parquet_file(path) as file:
            for index in range(file.num_row_groups):
                rows = file.metadata.row_group(index).num_rows
                first, last = max(start - position, 0), min(stop - position, rows)
                if first < last:
                    group = file.read_row_group(index, columns=["id", "image"])
                    if crops is not None:
                        # A set has operations only if it was imported with some.
                        stored = crops.read(split, shard, index, CROPS)
                        for name in stored.column_names:
                            group = group.append_column(name, stored[name])
                    yield from group.slice(first, last - first).to_pylist()
                position += rows


def _unique_captions(shards: Iterable[AnyPath]) -> list[str]:
    """The captions of all shards in order of first appearance."""
    seen: dict[str, None] = {}
    for shard in shards:
        captions = read_table(shard, ["captions"])["captions"].combine_chunks()
        seen |= dict.fromkeys(pc.struct_field(pc.list_flatten(captions), "text").to_pylist())
    return list(seen)
