"""Teacher embeddings stored beside a dataset, as the stream reads them.

Shapes: K crops of an image, C captions of it, D the teacher's embed_dim.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from siclip.data.augment import OPERATIONS, Box, Operation
from siclip.data.crops import chosen_crop
from siclip_platform.datasets.sidecar import Sidecar

Vector = npt.NDArray[np.float32]


@dataclass(frozen=True)
class StoredPair:
    """What is stored of one sample as it is read.

    Attributes:
        crop: the crop's index.
        box: the crop.
        image: the teacher's embedding (D,) of the crop.
        text: the teacher's embedding (D,) of the caption.
        operations: what was done to the crop before the teacher saw it.
    """

    crop: int
    box: Box
    image: Vector
    text: Vector
    operations: tuple[Operation, ...] = ()


class StoredGroup:
    """The embeddings of some rows.

    Attributes:
        columns: Arrow arrays of `siclip_platform.datasets.derived.embeddings.layout.EmbeddingLayout.schema`.
        crops: K.
    """

    def __init__(self, columns: Mapping[str, Any]) -> None:
        self.columns = columns
        self.crops = columns["boxes"].type.list_size // 4

    @classmethod
    def read(cls, sidecar: Sidecar, split: str, shard: int, row_group: int) -> StoredGroup:
        """Read the embeddings of a row group."""
        table = sidecar.read(split, shard, row_group)
        return cls({name: table[name].combine_chunks() for name in table.column_names})

    def pair(self, row: int, caption: int, seed: int, epoch: int, sample_id: str) -> StoredPair:
        """Return what is stored of a row and the caption of this index; (seed, epoch, sample id) decide the crop."""
        crop, box, operations = self.view(row, seed, epoch, sample_id)
        # one binary value has the K vectors of a row's crops
        image = _numbers(self.columns["image"][row]).reshape(self.crops, -1)[crop]
        text = _numbers(self.columns["text"][row].values[caption])
        return StoredPair(
            crop=crop,
            box=box,
            image=self._vector(image, "image_scale", row, crop),
            text=self._vector(text, "text_scale", row, caption),
            operations=operations,
        )

    def _operations(self, row: int) -> list[tuple[Operation, ...]]:
        if "operations" not in self.columns:
            return [()] * self.crops
        operations, magnitudes = (self.columns[name][row].as_py() for name in ("operations", "magnitudes"))
        return stored_operations(operations, magnitudes, self.crops)

    def view(self, row: int, seed: int, epoch: int, sample_id: str) -> tuple[int, Box, tuple[Operation, ...]]:
        """Return index, box and operations of the crop that a row gets in this epoch."""
        crop = chosen_crop(seed, epoch, sample_id, self.crops)
        boxes = self.columns["boxes"][row].values.to_numpy(zero_copy_only=False).reshape(-1, 4)
        top, left, height, width = (int(number) for number in boxes[crop])
        return crop, (top, left, height, width), self._operations(row)[crop]

    def _vector(self, numbers: npt.NDArray[np.uint8], scales: str, row: int, index: int) -> Vector:
        from siclip.data.quantize import dequantize

        scale = None
        if scales in self.columns:
            scale = np.array([self.columns[scales][row].values[index].as_py()], dtype=np.float32)
        vector: Vector = dequantize(numbers[None], scale)[0].numpy()
        return vector


def stored_operations(operations: list[int], magnitudes: list[float], crops: int) -> list[tuple[Operation, ...]]:
    """Return the operations of each crop of an image, see `datasets.derived.embeddings.layout.with_operations`."""
    pairs = [(OPERATIONS[index], value) for index, value in zip(operations, magnitudes, strict=True)]
    each = len(pairs) // crops
    return [tuple(pairs[crop * each : (crop + 1) * each]) for crop in range(crops)]


def _numbers(scalar: Any) -> npt.NDArray[np.uint8]:
    return np.frombuffer(scalar.as_buffer(), dtype=np.uint8)
