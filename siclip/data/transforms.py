"""MobileCLIP's preprocessing: shorter side to the size (bilinear), centre crop, values in [0, 1], mean 0, std 1."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from siclip.data.pillow_images import upright_rgb

TRAIN_SCALE = (0.9, 1.0)
"""Share of the area that a training crop keeps: open_clip's default."""


def preprocess(train: bool, size: int = 256) -> Callable[[Image.Image], Tensor]:
    """The transform of a Pillow image of any size and mode to (3, size, size), fp32 in [0, 1].

    For evaluation, as in the reference: shorter side to ``size`` (bilinear), centre crop. For training: a random crop
    of 90 to 100 % of the area at an aspect ratio of 3:4 to 4:3, drawn from torch's global generator; no flip, because
    captions mention left and right. Values are not normalised by a mean and standard deviation.

    The image is read as every other reader does, see `siclip.data.pillow_images.upright_rgb`: turned upright by what
    its EXIF or XMP states, transparency over white, 16 bits scaled to 8. The transform raises `ImageError`, a
    `UserError`, for one that is too large, animated or of a depth without a fixed range.

    Args:
        train: for training instead of evaluation.
        size: height and width of the result in pixels.
    """
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, RandomResizedCrop, Resize, ToTensor

    bilinear = InterpolationMode.BILINEAR
    fit: list[Any] = [RandomResizedCrop(size, scale=TRAIN_SCALE, interpolation=bilinear)]
    if not train:
        fit = [Resize(size, interpolation=bilinear), CenterCrop(size)]
    transform: Callable[[Image.Image], Tensor] = Compose([upright_rgb, *fit, ToTensor()])
    return transform


def fit_image(image: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    """(height, width, 3) uint8 → (size, size, 3) uint8: `preprocess` for evaluation, before the division by 255.

    An image that already has the size is returned unchanged. Sizes and offsets are rounded as in torchvision, so that
    both give the same pixels.
    """
    height, width = image.shape[:2]
    if (height, width) == (size, size):
        return image
    short = min(height, width)
    fitted = (int(size * width / short), int(size * height / short))
    resized = np.asarray(Image.fromarray(image).resize(fitted, Image.Resampling.BILINEAR))
    top, left = round((resized.shape[0] - size) / 2), round((resized.shape[1] - size) / 2)
    return resized[top : top + size, left : left + size]
