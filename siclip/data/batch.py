"""The batch: what one training step takes.

Shapes: B batch, T context length.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Pairs of images and captions.

    images: (B, height, width, 3) uint8. tokens: (B, T) int64. image_ids, caption_ids: (B,) int64, equal where
    the image or the caption is the same.
    """

    images: Tensor
    tokens: Tensor
    image_ids: Tensor
    caption_ids: Tensor

    def __len__(self) -> int:
        return len(self.images)

    @classmethod
    def from_arrays(cls, columns: Mapping[str, np.ndarray]) -> Batch:
        """From the columns ``images``, ``tokens``, ``image_ids``, ``caption_ids``."""
        return cls(
            images=_tensor(columns["images"]),
            tokens=_tensor(columns["tokens"]).long(),
            image_ids=_tensor(columns["image_ids"]),
            caption_ids=_tensor(columns["caption_ids"]),
        )

    def to(self, device: torch.device) -> Batch:
        tensors = (self.images, self.tokens, self.image_ids, self.caption_ids)
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in tensors))


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def to_float_images(images: Tensor) -> Tensor:
    """(B, height, width, 3) uint8 → (B, 3, height, width) in [0, 1], fp32, in channels-last memory."""
    return images.permute(0, 3, 1, 2).float().div_(255)
