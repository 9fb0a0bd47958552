"""The columns of a sidecar with embeddings.

Shapes: N rows, K image augmentations, D_i and D_t the teacher's widths.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from siclip.config import Config
from siclip.data.quantize import NUMBER_BYTES, Numbers, quantize
from siclip_platform.datasets.sidecar import SidecarManifest

if TYPE_CHECKING:
    from torch import Tensor

Boxes = npt.NDArray[np.int32]
Quantized = tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32] | None]
"""The result of `siclip.data.quantize.quantize`."""


class UsedCaptions(Config):
    """A caption set beside the dataset whose texts are embedded.

    Attributes:
        name: of the set.
        hash: of its manifest.
    """

    name: str
    hash: str


class EmbeddingLayout(Config):
    """How to read embeddings; ``recipe["layout"]`` of their manifest.

    Attributes:
        teacher: its name and a hash of its weights.
        key: a hash of ``teacher`` and of the preprocessing of its inputs.
        widths: of its image and text embeddings.
        logit_scale: of the teacher.
        numbers: number format.
        augmentations: K, the number of crops per image.
        image_size: (height, width) that a crop was resized to before the teacher got it.
        captions: caption sets that were embedded after the dataset's own captions, in this order.
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
        """Bytes of one image vector and of one text vector, without scales."""
        image, text = (width * NUMBER_BYTES[self.numbers] for width in self.widths)
        return image, text

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema.

        ``image``: K vectors; ``boxes``: K times (top, left, height, width) in pixels of the stored image; ``text``: a
        vector for each caption; for int8 also the scales of each vector.
        """
        image, text = self.vector_bytes
        fields = [
            pa.field("image", pa.binary(image * self.augmentations)),
            pa.field("boxes", pa.list_(pa.int32(), 4 * self.augmentations)),
            pa.field("text", pa.list_(pa.binary(text))),
        ]
        if self.numbers == "int8":
            fields += [pa.field(name, pa.list_(pa.float32())) for name in ("image_scale", "text_scale")]
        return pa.schema(fields)


def with_operations(schema: pa.Schema, crops: int, operations: int) -> pa.Schema:
    """Add what is done to each of ``crops`` crops after its resize: the columns ``operations`` and ``magnitudes``.

    An operation is an index into `siclip.data.augment.OPERATIONS`; ``operations`` of them follow one another for each
    crop.
    """
    size = crops * operations
    schema = schema.append(pa.field("operations", pa.list_(pa.int8(), size)))
    return schema.append(pa.field("magnitudes", pa.list_(pa.float32(), size)))


def embedding_table(
    layout: EmbeddingLayout, image: Tensor, boxes: Boxes, text: Tensor, captions: Sequence[int]
) -> pa.Table:
    """Return unit vectors as a table of the layout's schema.

    Args:
        layout: of the columns.
        image: (N·K, D_i).
        boxes: (N, K, 4).
        text: (ΣC, D_t).
        captions: C, the number of captions of each row.
    """
    numbers = layout.numbers
    return quantized_table(layout, quantize(image, numbers), boxes, quantize(text, numbers), captions)


def quantized_table(
    layout: EmbeddingLayout, image: Quantized, boxes: Boxes, text: Quantized, captions: Sequence[int]
) -> pa.Table:
    """As `embedding_table`, of vectors in the number format of the layout."""
    rows, k = len(captions), layout.augmentations
    (image_bytes, image_scales), (text_bytes, text_scales) = image, text
    starts = pa.array(np.concatenate([[0], np.cumsum(captions)]), pa.int32())
    image_width, text_width = layout.vector_bytes
    columns = {
        "image": _fixed(image_bytes.reshape(rows, -1), image_width * k),
        "boxes": pa.FixedSizeListArray.from_arrays(pa.array(boxes.reshape(-1), pa.int32()), 4 * k),
        "text": pa.ListArray.from_arrays(starts, _fixed(text_bytes, text_width)),
    }
    if image_scales is not None and text_scales is not None:
        crop_starts = pa.array(np.arange(rows + 1) * k, pa.int32())
        columns["image_scale"] = pa.ListArray.from_arrays(crop_starts, pa.array(image_scales))
        columns["text_scale"] = pa.ListArray.from_arrays(starts, pa.array(text_scales))
    return pa.table(columns).cast(layout.schema)


def _fixed(data: npt.NDArray[np.uint8], width: int) -> pa.Array:
    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(width), len(data), [None, pa.py_buffer(np.ascontiguousarray(data))]
    )
