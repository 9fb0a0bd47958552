"""The batch: the input of one training step.

Shapes: B batch, T context length, C width of a tower, D_t a teacher's embed_dim, K false captions of a sample.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class TrunkFeatures:
    """The inputs of the attention blocks of both towers: image (B, C, h, w), text (B, T, C)."""

    image: Tensor
    text: Tensor

    def __getitem__(self, rows: slice) -> TrunkFeatures:
        return TrunkFeatures(self.image[rows], self.text[rows])

    def pin_memory(self) -> TrunkFeatures:
        return TrunkFeatures(self.image.pin_memory(), self.text.pin_memory())

    def to(self, device: torch.device) -> TrunkFeatures:
        return TrunkFeatures(self.image.to(device, non_blocking=True), self.text.to(device, non_blocking=True))


@dataclass(frozen=True)
class Negatives:
    """False captions of each sample of a batch, K each.

    Attributes:
        tokens: token ids (B, K, T) int64.
        ids: (B, K) int64, as the batch's ``caption_ids``.
        kinds: (B, K) int64, an index of `siclip.data.negatives.KINDS`; -1: the sample has no further one.
    """

    tokens: Tensor
    ids: Tensor
    kinds: Tensor

    def __getitem__(self, rows: slice) -> Negatives:
        return Negatives(self.tokens[rows], self.ids[rows], self.kinds[rows])

    def pin_memory(self) -> Negatives:
        return Negatives(self.tokens.pin_memory(), self.ids.pin_memory(), self.kinds.pin_memory())

    def to(self, device: torch.device) -> Negatives:
        return Negatives(*(part.to(device, non_blocking=True) for part in (self.tokens, self.ids, self.kinds)))


@dataclass(frozen=True)
class Batch:
    """Images with one caption each.

    Attributes:
        images: (B, height, width, 3) uint8; None if ``features`` replace them.
        tokens: token ids (B, T) int64.
        image_ids, caption_ids: (B,) int64, equal where the image or the caption is the same.
        features: precomputed outputs of a frozen trunk.
        teacher_image, teacher_text: precomputed unit embeddings of a teacher, (B, D_t).
        negatives: false captions of the samples; None: they are not read.
    """

    images: Tensor | None
    tokens: Tensor
    image_ids: Tensor
    caption_ids: Tensor
    features: TrunkFeatures | None = None
    teacher_image: Tensor | None = None
    teacher_text: Tensor | None = None
    negatives: Negatives | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: slice) -> Batch:
        """The samples in a slice."""
        return self._changed(lambda value: value[rows])

    @classmethod
    def from_arrays(cls, columns: Mapping[str, np.ndarray]) -> Batch:
        """A batch from columns.

        Args:
            columns: ``tokens``, ``image_ids``, ``caption_ids`` and optionally ``images``, ``teacher_image``,
                ``teacher_text``, ``trunk_image`` and ``trunk_text`` (bf16 viewed as uint16, as numpy has no bf16),
                ``negative_tokens``, ``negative_ids`` and ``negative_kinds``.
        """
        tensors = {name: _tensor(array) for name, array in columns.items()}
        features = None
        if "trunk_image" in tensors:
            features = TrunkFeatures(*(tensors[name].view(torch.bfloat16) for name in ("trunk_image", "trunk_text")))
        negatives = None
        if "negative_tokens" in tensors:
            negatives = Negatives(
                tensors["negative_tokens"].long(), tensors["negative_ids"], tensors["negative_kinds"]
            )
        return cls(
            images=tensors.get("images"),
            tokens=tensors["tokens"].long(),
            image_ids=tensors["image_ids"],
            caption_ids=tensors["caption_ids"],
            features=features,
            teacher_image=tensors.get("teacher_image"),
            teacher_text=tensors.get("teacher_text"),
            negatives=negatives,
        )

    def to(self, device: torch.device) -> Batch:
        def moved(value: Any) -> Any:
            return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value.to(device)

        return self._changed(moved)

    def pinned(self) -> Batch:
        """A copy in page-locked memory, from which a copy to a CUDA device does not block the caller."""
        return self._changed(lambda value: value.pin_memory())

    def staged(self) -> Batch:
        """`pinned` if there is a CUDA device, otherwise the batch itself."""
        return self.pinned() if torch.cuda.is_available() else self

    def _changed(self, change: Callable[[Any], Any]) -> Batch:
        """Apply a function to every part that is not None."""
        parts: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        changed: dict[str, Any] = {name: part if part is None else change(part) for name, part in parts.items()}
        return Batch(**changed)


def _tensor(array: np.ndarray) -> Tensor:
    # torch has no read-only tensors; columns from Arrow are read-only.
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def to_float_images(images: Tensor) -> Tensor:
    """(B, height, width, 3) uint8 → (B, 3, height, width) in [0, 1], fp32, in channels-last memory."""
    return images.permute(0, 3, 1, 2).float().div_(255)
