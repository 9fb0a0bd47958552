"""How embeddings lie in a sidecar's columns, and back from there to vectors.

Shapes: N rows, K image augmentations, D_i and D_t the teacher's widths.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from pydantic import Field
from torch import Tensor

from siclip.config import Config
from siclip.data.quantize import NUMBER_BYTES, Numbers, dequantize, quantize
from siclip_platform.datasets.sidecar import SidecarManifest

Boxes = npt.NDArray[np.int32]


class UsedCaptions(Config):
    """Captions beside the dataset whose texts were embedded too."""

    name: str
    hash: str


class EmbeddingLayout(Config):
    """What a reader of embeddings needs to know; ``recipe["layout"]`` of their manifest.

    ``teacher`` names it with a hash of its weights; ``key`` is a hash of that and of how its inputs were made.
    ``widths`` of its image and text embeddings. ``image_size``: (height, width) that a crop was resized to before the
    teacher got it. ``captions``: in this order behind the dataset's own.
    """

    teacher: str
    key: str
    widths: tuple[int, int]
    logit_scale: float
    numbers: Numbers
    augmentations: int = Field(ge=1)
    image_size: tuple[int, int]
    captions: tuple[UsedCaptions, ...] = ()

    @classmethod
    def of(cls, manifest: SidecarManifest) -> EmbeddingLayout:
        return cls.model_validate(manifest.recipe["layout"])

    @property
    def vector_bytes(self) -> tuple[int, int]:
        """Of one image and one text vector, without scales."""
        image, text = (width * NUMBER_BYTES[self.numbers] for width in self.widths)
        return image, text

    @property
    def schema(self) -> pa.Schema:
        """``image``: K vectors; ``boxes``: K times (top, left, height, width) in pixels of the stored image;
        ``text``: a vector for each caption; for int8 the scales of each."""
        image, text = self.vector_bytes
        fields = [
            pa.field("image", pa.binary(image * self.augmentations)),
            pa.field("boxes", pa.list_(pa.int32(), 4 * self.augmentations)),
            pa.field("text", pa.list_(pa.binary(text))),
        ]
        if self.numbers == "int8":
            fields += [pa.field(name, pa.list_(pa.float32())) for name in ("image_scale", "text_scale")]
        return pa.schema(fields)


def embedding_table(
    layout: EmbeddingLayout, image: Tensor, boxes: Boxes, text: Tensor, captions: Sequence[int]
) -> pa.Table:
    """Unit vectors as columns: image (N·K, D_i), boxes (N, K, 4), text (ΣC, D_t) for ``captions`` C of each row."""
    rows, k = len(captions), layout.augmentations
    image_bytes, image_scales = quantize(image, layout.numbers)
    text_bytes, text_scales = quantize(text, layout.numbers)
    starts = pa.array(np.concatenate([[0], np.cumsum(captions)]), pa.int32())
    image_width, text_width = layout.vector_bytes
    columns = {
        "image": _fixed(image_bytes.reshape(rows, -1), image_width * k),
        "boxes": pa.FixedSizeListArray.from_arrays(pa.array(boxes.reshape(-1), pa.int32()), 4 * k),
        "text": pa.ListArray.from_arrays(starts, _fixed(text_bytes, text_width)),
    }
    if image_scales is not None and text_scales is not None:
        places = pa.array(np.arange(rows + 1) * k, pa.int32())
        columns["image_scale"] = pa.ListArray.from_arrays(places, pa.array(image_scales))
        columns["text_scale"] = pa.ListArray.from_arrays(starts, pa.array(text_scales))
    return pa.table(columns).cast(layout.schema)


def image_vectors(
    layout: EmbeddingLayout, table: pa.Table, rows: Sequence[int], which: Sequence[int]
) -> tuple[Tensor, Boxes]:
    """Vectors (len(rows), D_i) fp32 and boxes (len(rows), 4) of augmentation ``which[i]`` of row ``rows[i]``."""
    k, width = layout.augmentations, layout.vector_bytes[0]
    wanted = np.asarray(rows, dtype=np.int64)
    chosen = np.asarray(which, dtype=np.int64)
    data = _bytes(_one(table["image"]), width * k).reshape(-1, k, width)[wanted, chosen]
    scales = None
    if layout.numbers == "int8":
        scales = np.asarray(_one(table["image_scale"]).flatten()).reshape(-1, k)[wanted, chosen]
    boxes = np.asarray(_one(table["boxes"]).flatten()).reshape(-1, k, 4)[wanted, chosen]
    return dequantize(data, scales), boxes


def text_vectors(layout: EmbeddingLayout, table: pa.Table, rows: Sequence[int], which: Sequence[int]) -> Tensor:
    """Vectors (len(rows), D_t) fp32 of caption ``which[i]`` of row ``rows[i]``."""
    column = _one(table["text"])
    offsets = np.asarray(column.offsets)
    places = offsets[np.asarray(rows, dtype=np.int64)] + np.asarray(which, dtype=np.int64)
    if (places >= offsets[np.asarray(rows, dtype=np.int64) + 1]).any():
        raise IndexError("a caption without an embedding")
    data = _bytes(column.values, layout.vector_bytes[1])[places]
    if layout.numbers == "bf16":
        return dequantize(data, None)
    scale_column = _one(table["text_scale"])
    base = np.asarray(scale_column.offsets)[np.asarray(rows, dtype=np.int64)]
    return dequantize(data, np.asarray(scale_column.values)[base + np.asarray(which, dtype=np.int64)])


def unit(vectors: Tensor) -> Tensor:
    """Read vectors back on the unit sphere, from which rounding took them."""
    return torch.nn.functional.normalize(vectors, dim=-1)


def _one(column: pa.ChunkedArray) -> pa.Array:
    array = column.combine_chunks()
    return array.chunk(0) if isinstance(array, pa.ChunkedArray) else array


def _fixed(data: npt.NDArray[np.uint8], width: int) -> pa.Array:
    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(width), len(data), [None, pa.py_buffer(np.ascontiguousarray(data))]
    )


def _bytes(array: pa.Array, width: int) -> npt.NDArray[np.uint8]:
    found = np.frombuffer(array.buffers()[1], dtype=np.uint8)
    return found[array.offset * width : (array.offset + len(array)) * width].reshape(len(array), width)
