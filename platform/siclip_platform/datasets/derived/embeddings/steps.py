"""The steps of embedding: rows of a shard → crops and tokens → embeddings → stored numbers → the shard's file.

Shapes: N consecutive rows of a row group, K augmentations, H height, W width, C captions of the row group, T tokens,
D_i and D_t the teacher's widths.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from siclip.data.crops import replay_crop, seeded_boxes
from siclip.data.images import decode_image
from siclip.data.quantize import quantize
from siclip.errors import UserError
from siclip.tokenizer import tokenize
from siclip_platform.datasets.derived.actors import one_thread
from siclip_platform.datasets.derived.embeddings.config import EmbedConfig
from siclip_platform.datasets.derived.embeddings.layout import Boxes, EmbeddingLayout, Quantized, quantized_table
from siclip_platform.datasets.derived.embeddings.teacher import EmbeddingTeacher
from siclip_platform.datasets.derived.shards import group_rows, readable
from siclip_platform.datasets.derived.sidecar_stage import ShardJob, shard_result
from siclip_platform.datasets.derived.stage import Task, TaskOutput
from siclip_platform.datasets.manifest import open_dataset
from siclip_platform.datasets.sidecar import open_sidecar, write_sidecar_shard

A = TypeVar("A", npt.NDArray[np.uint8], Tensor)
PART_BYTES = 2**27
"""Of the crops that pass through the steps together: a process holds them three times while it hands them on."""


class Rows(NamedTuple):
    """Rows ``first`` to ``stop`` of row group ``group``."""

    group: int
    first: int
    stop: int


@dataclass(frozen=True)
class EmbedPart:
    """Consecutive rows of a shard."""

    job: ShardJob
    rows: list[Rows]


@dataclass(frozen=True)
class Inputs:
    """What the teacher sees of some rows.

    Attributes:
        where: names the rows.
        captions: of each row of the row group; None: other rows of it come first, and its captions are with them.
        boxes: (N, K, 4), in pixels of the stored images.
        crops: (N·K, H, W, 3)
        tokens: (C, T)
    """

    where: str
    captions: list[int] | None
    boxes: Boxes
    crops: npt.NDArray[np.uint8]
    tokens: Tensor


@dataclass(frozen=True)
class Embedded:
    """The embeddings of `Inputs`, in fp32: (N·K, D_i) and (C, D_t)."""

    captions: list[int] | None
    boxes: Boxes
    image: Tensor
    text: Tensor


@dataclass(frozen=True)
class Stored:
    """`Embedded` in the number format of the layout."""

    captions: list[int] | None
    boxes: Boxes
    image: Quantized
    text: Quantized


def images_together(config: EmbedConfig) -> int:
    """Return how many images the teacher embeds at a time: as many as have ``batch_size`` crops."""
    return max(1, config.batch_size // config.augmentations)


def part_rows(config: EmbedConfig, size: tuple[int, int]) -> int:
    """Return the most rows of a part: `PART_BYTES` of crops, in whole batches of the teacher.

    Args:
        config: settings.
        size: (height, width) of a crop.
    """
    batch = images_together(config)
    return batch * max(1, PART_BYTES // (batch * config.augmentations * size[0] * size[1] * 3))


def parts_of(folder: Path, most: int, task: Task) -> list[EmbedPart]:
    """Return the parts of a shard in order: each has at most ``most`` rows.

    Only row groups with more rows are cut, at multiples of ``most``: a batch of the teacher is that of an uncut row
    group, because embeddings are rounded differently in another one.

    Raises:
        UserError: the shard cannot be read.
    """
    job = ShardJob.model_validate(task.payload)
    parts: list[EmbedPart] = []
    filled = most
    for group, size in enumerate(group_rows(folder / job.path)):
        # A row group without rows is also written.
        for first in range(0, max(1, size), most):
            rows = Rows(group, first, min(first + most, size))
            count = rows.stop - rows.first
            if not parts or filled + count > most:
                parts.append(EmbedPart(job, []))
                filled = 0
            parts[-1].rows.append(rows)
            filled += count
    return parts


class Crop:
    """Step on a CPU: reads rows, decodes their images, replays the crops and tokenizes the captions.

    Args:
        folder: of the dataset.
        config: JSON of the settings.
        size: (height, width) of a crop.
        context_length: of the teacher, in tokens.
    """

    def __init__(self, folder: str, config: str, size: tuple[int, int], context_length: int) -> None:
        self.folder, self.size, self.context_length = Path(folder), size, context_length
        self.config = EmbedConfig.model_validate_json(config)
        names = self.config.captions
        dataset = open_dataset(self.folder) if names else None
        self.sidecars = [open_sidecar(dataset, "captions", name) for name in names] if dataset else []

    def __call__(self, part: EmbedPart) -> list[Inputs]:
        return [self.inputs(part.job, rows) for rows in part.rows]

    def inputs(self, job: ShardJob, rows: Rows) -> Inputs:
        path = self.folder / job.path
        with readable(path) as file:
            table = file.read_row_group(rows.group, columns=["id", "image", "captions"])
        texts = None if rows.first else self.texts(table, job, rows.group)
        some = table.slice(rows.first, rows.stop - rows.first)
        boxes = np.empty((some.num_rows, self.config.augmentations, 4), dtype=np.int32)
        crops = np.empty((*boxes.shape[:2], *self.size, 3), dtype=np.uint8)
        for row, (name, image) in enumerate(zip(some["id"].to_pylist(), some["image"].to_pylist(), strict=True)):
            self.crop(image, name, f"{path}: sample {name}", boxes[row], crops[row])
        return Inputs(
            where=f"{path}, rows from {rows.first} of row group {rows.group}",
            captions=None if texts is None else [len(each) for each in texts],
            boxes=boxes,
            crops=crops.reshape(-1, *self.size, 3),
            tokens=tokenize(list(chain(*(texts or []))), self.context_length),
        )

    def texts(self, table: pa.Table, job: ShardJob, group: int) -> list[list[str]]:
        """Return the captions of each row: the dataset's own, then those of the caption sets beside it."""
        # Row groups are aligned, so group i of a sidecar has the captions of group i of the shard.
        beside = [sidecar.read(job.split, job.number, group) for sidecar in self.sidecars]
        columns = [each["captions"].to_pylist() for each in (table, *beside)]
        return [[caption["text"] for caption in chain(*row)] for row in zip(*columns, strict=True)]

    def crop(self, image: bytes, name: str, where: str, boxes: Boxes, crops: npt.NDArray[np.uint8]) -> None:
        """Write the crops of an image.

        Args:
            image: as stored.
            name: of the sample, which with the seed determines the crops.
            where: names it if its image cannot be decoded.
            boxes: (K, 4), written.
            crops: (K, H, W, 3), written.
        """
        pixels = decode_image(image, where)
        height, width = pixels.shape[:2]
        boxes[:] = seeded_boxes(height, width, len(boxes), self.config.crop_scale, self.config.seed, name)
        for number, box in enumerate(boxes):
            crops[number] = replay_crop(pixels, box, self.size)


class Encode:
    """Step of an actor that holds the teacher."""

    def __init__(self, config: str, gpu: bool) -> None:
        self.config = EmbedConfig.model_validate_json(config)
        self.teacher = EmbeddingTeacher(
            self.config.teacher, image_size=self.config.image_size, precision=self.config.precision, gpu=gpu
        )

    def __call__(self, part: list[Inputs]) -> list[Embedded]:
        # Equal bytes on every worker: see `one_thread`.
        with one_thread():
            return [self.embedded(inputs) for inputs in part]

    def embedded(self, inputs: Inputs) -> Embedded:
        """Embed batch by batch.

        Raises:
            UserError: a batch does not fit into the GPU's memory.
        """
        crops, texts = images_together(self.config) * self.config.augmentations, self.config.batch_size
        # Rows may be without captions, and torch.cat needs at least one tensor.
        image, text = (torch.empty(0, width) for width in self.teacher.widths)
        try:
            image = torch.cat([image, *map(self.teacher.images, _batches(inputs.crops, crops))])
            text = torch.cat([text, *map(self.teacher.tokens, _batches(inputs.tokens, texts))])
        except torch.OutOfMemoryError:
            # Not halved as in captioning: the batch size is recorded, because embeddings are rounded by it.
            raise UserError(
                f"{inputs.where}: --batch-size {texts} does not fit into the memory of {self.teacher.device} with "
                f"the teacher {self.config.teacher}: end other processes on that GPU and repeat the command, or "
                "delete the unfinished embeddings and start them with a smaller --batch-size"
            ) from None
        return Embedded(inputs.captions, inputs.boxes, image, text)


def _batches(rows: A, size: int) -> Iterator[A]:
    for first in range(0, len(rows), size):
        yield rows[first : first + size]


class Quantize:
    """Step on a CPU: rounds embeddings to the number format of the layout."""

    def __init__(self, layout: str) -> None:
        self.numbers = EmbeddingLayout.model_validate_json(layout).numbers

    def __call__(self, part: list[Embedded]) -> list[Stored]:
        return [
            Stored(rows.captions, rows.boxes, quantize(rows.image, self.numbers), quantize(rows.text, self.numbers))
            for rows in part
        ]


def write_embeddings(layout: EmbeddingLayout, folder: Path, task: Task, parts: Sequence[list[Stored]]) -> TaskOutput:
    """Write the embeddings of a shard, with the row groups of the shard."""
    job = ShardJob.model_validate(task.payload)
    counts = {"images": 0, "captions": 0}
    groups: list[list[Stored]] = []
    for rows in chain(*parts):
        if rows.captions is not None:
            groups.append([])
            counts["captions"] += sum(rows.captions)
        groups[-1].append(rows)
        counts["images"] += len(rows.boxes)
    tables = (_table(layout, group) for group in groups)
    entry = write_sidecar_shard(folder / job.path, tables, layout.schema)
    return TaskOutput(files=(job.path,), result=shard_result(entry, counts))


def _table(layout: EmbeddingLayout, group: list[Stored]) -> pa.Table:
    """Return the table of a row group from its rows in order."""
    first = group[0]
    assert first.captions is not None
    numbers = np.concatenate([rows.image[0] for rows in group])
    scales = [rows.image[1] for rows in group if rows.image[1] is not None]
    image = (numbers, np.concatenate(scales) if scales else None)
    return quantized_table(layout, image, np.concatenate([rows.boxes for rows in group]), first.text, first.captions)
