"""The batch: what one training step takes.

Shapes: B batch, T context length, C width of a tower, D_t a teacher's embed_dim.
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
    """What the attention blocks of both towers start from: image (B, C, h, w), text (B, T, C)."""

    image: Tensor
    text: Tensor

    def __getitem__(self, rows: slice) -> TrunkFeatures:
        return TrunkFeatures(self.image[rows], self.text[rows])

    def pin_memory(self) -> TrunkFeatures:
        return TrunkFeatures(self.image.pin_memory(), self.text.pin_memory())

    def to(self, device: torch.device) -> TrunkFeatures:
        return TrunkFeatures(self.image.to(device, non_blocking=True), self.text.to(device, non_blocking=True))


@dataclass(frozen=True)
class Batch:
    """Pairs of images and captions.

    images: (B, height, width, 3) uint8; None where ``features`` stand for them. tokens: (B, T) int64. image_ids,
    caption_ids: (B,) int64, equal where the image or the caption is the same. features: the outputs of a frozen
    trunk, stored ahead. teacher_image, teacher_text: (B, D_t), a teacher's unit embeddings, stored ahead.
    """

    images: Tensor | None
    tokens: Tensor
    image_ids: Tensor
    caption_ids: Tensor
    features: TrunkFeatures | None = None
    teacher_image: Tensor | None = None
    teacher_text: Tensor | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: slice) -> Batch:
        """Some of the pairs."""
        return self._changed(lambda value: value[rows])

    @classmethod
    def from_arrays(cls, columns: Mapping[str, np.ndarray]) -> Batch:
        """From the columns ``tokens``, ``image_ids``, ``caption_ids`` and what else there is of ``images``,
        ``teacher_image``, ``teacher_text``, ``trunk_image`` and ``trunk_text`` (bf16, kept as uint16)."""
        tensors = {name: _tensor(array) for name, array in columns.items()}
        features = None
        if "trunk_image" in tensors:
            features = TrunkFeatures(*(tensors[name].view(torch.bfloat16) for name in ("trunk_image", "trunk_text")))
        return cls(
            images=tensors.get("images"),
            tokens=tensors["tokens"].long(),
            image_ids=tensors["image_ids"],
            caption_ids=tensors["caption_ids"],
            features=features,
            teacher_image=tensors.get("teacher_image"),
            teacher_text=tensors.get("teacher_text"),
        )

    def to(self, device: torch.device) -> Batch:
        def moved(value: Any) -> Any:
            return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value.to(device)

        return self._changed(moved)

    def pinned(self) -> Batch:
        """In page-locked memory, from where a copy to a CUDA device does not hold up the caller."""
        return self._changed(lambda value: value.pin_memory())

    def staged(self) -> Batch:
        """`pinned` where there is a CUDA device to copy to, else itself."""
        return self.pinned() if torch.cuda.is_available() else self

    def _changed(self, change: Callable[[Any], Any]) -> Batch:
        """With every part that there is changed."""
        parts: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        changed: dict[str, Any] = {name: part if part is None else change(part) for name, part in parts.items()}
        return Batch(**changed)


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def to_float_images(images: Tensor) -> Tensor:
    """(B, height, width, 3) uint8 → (B, 3, height, width) in [0, 1], fp32, in channels-last memory."""
    return images.permute(0, 3, 1, 2).float().div_(255)
