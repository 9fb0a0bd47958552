"""MobileCLIP's preprocessing: shorter side to the size, bilinear, centre crop; then [0, 1], mean 0, std 1."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

TRAIN_SCALE = (0.9, 1.0)
"""Share of the area that the training crop keeps: open_clip's default for training from captions."""


def preprocess(train: bool, size: int = 256) -> Callable[[Image.Image], Tensor]:
    """The transform of one Pillow image of any size and mode: → (3, size, size), fp32 in [0, 1].

    For evaluation, as the reference has it: shorter side to ``size``, bilinear, centre crop. For training a
    random crop of 90 to 100 % of the area, aspect ratio 3:4 to 4:3 (torch's global generator draws it); no flip,
    because captions say left and right. No mean is subtracted and nothing is divided by a standard deviation.
    """
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, RandomResizedCrop, Resize, ToTensor

    bilinear = InterpolationMode.BILINEAR
    fit: list[Any] = [RandomResizedCrop(size, scale=TRAIN_SCALE, interpolation=bilinear)]
    if not train:
        fit = [Resize(size, interpolation=bilinear), CenterCrop(size)]
    transform: Callable[[Image.Image], Tensor] = Compose([_as_rgb, *fit, ToTensor()])
    return transform


def _as_rgb(image: Image.Image) -> Image.Image:
    return image.convert("RGB")


def fit_image(image: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    """(height, width, 3) uint8 → (size, size, 3) uint8: `preprocess` for evaluation, before the division by 255.

    An image of that size is returned as it is. Rounds as torchvision does, so that both give the same pixels.
    """
    height, width = image.shape[:2]
    if (height, width) == (size, size):
        return image
    short = min(height, width)
    fitted = (int(size * width / short), int(size * height / short))
    resized = np.asarray(Image.fromarray(image).resize(fitted, Image.Resampling.BILINEAR))
    top, left = round((resized.shape[0] - size) / 2), round((resized.shape[1] - size) / 2)
    return resized[top : top + size, left : left + size]
