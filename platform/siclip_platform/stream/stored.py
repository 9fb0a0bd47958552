"""Teacher embeddings stored beside a dataset, as the stream reads them.

Shapes: K crops of an image, C captions of it, D the teacher's embed_dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from siclip.data.augment import Box
from siclip.data.crops import chosen_crop
from siclip.data.quantize import dequantize
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
    """

    crop: int
    box: Box
    image: Vector
    text: Vector


class StoredGroup:
    """The embeddings of one row group."""

    def __init__(self, sidecar: Sidecar, split: str, shard: int, row_group: int) -> None:
        table = sidecar.read(split, shard, row_group)
        self._columns: dict[str, Any] = {name: table[name].combine_chunks() for name in table.column_names}
        self.crops = self._columns["boxes"].type.list_size // 4

    def pair(self, row: int, caption: int, seed: int, epoch: int, sample_id: str) -> StoredPair:
        """Return what is stored of a row and the caption of this index; (seed, epoch, sample id) decide the crop."""
        crop = chosen_crop(seed, epoch, sample_id, self.crops)
        boxes = self._columns["boxes"][row].values.to_numpy(zero_copy_only=False).reshape(-1, 4)
        top, left, height, width = (int(number) for number in boxes[crop])
        # one binary value has the K vectors of a row's crops
        image = _numbers(self._columns["image"][row]).reshape(self.crops, -1)[crop]
        text = _numbers(self._columns["text"][row].values[caption])
        return StoredPair(
            crop=crop,
            box=(top, left, height, width),
            image=self._vector(image, "image_scale", row, crop),
            text=self._vector(text, "text_scale", row, caption),
        )

    def _vector(self, numbers: npt.NDArray[np.uint8], scales: str, row: int, index: int) -> Vector:
        scale = None
        if scales in self._columns:
            scale = np.array([self._columns[scales][row].values[index].as_py()], dtype=np.float32)
        vector: Vector = dequantize(numbers[None], scale)[0].numpy()
        return vector


def _numbers(scalar: Any) -> npt.NDArray[np.uint8]:
    return np.frombuffer(scalar.as_buffer(), dtype=np.uint8)
