"""MobileCLIP's preprocessing: shorter side to the size, bilinear, centre crop; then [0, 1], mean 0, std 1."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image


def fit_image(image: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    """(height, width, 3) uint8 → (size, size, 3) uint8; an image of that size is returned as it is."""
    height, width = image.shape[:2]
    if (height, width) == (size, size):
        return image
    scale = size / min(height, width)
    fitted = (max(size, round(width * scale)), max(size, round(height * scale)))
    resized = np.asarray(Image.fromarray(image).resize(fitted, Image.Resampling.BILINEAR))
    top, left = (resized.shape[0] - size) // 2, (resized.shape[1] - size) // 2
    return resized[top : top + size, left : left + size]
