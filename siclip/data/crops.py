"""Crops that are drawn once, stored and replayed: boxes in pixels of the whole decoded image."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from siclip.data.augment import Box, Pixels, crop_box
from siclip.data.captions import stable_id, uniform


def seeded_boxes(
    height: int, width: int, count: int, scale: float, seed: int, sample_id: str
) -> npt.NDArray[np.int32]:
    """``count`` crops (count, 4) of an image, determined by (seed, sample id, index) alone.

    Args:
        height, width: of the image in pixels.
        count: number of crops.
        scale: each crop keeps between this share and all of the area, at an aspect ratio of 3:4 to 4:3 (see
            `crop_box`); 1: all crops are the largest centred square.
        seed: of the set of crops.
        sample_id: of the image.
    """
    if scale == 1:
        side = min(height, width)
        boxes = [((height - side) // 2, (width - side) // 2, side, side)] * count
    else:
        keys = (stable_id(f"crop/{seed}/{sample_id}/{index}") for index in range(count))
        boxes = [crop_box(height, width, scale, np.random.default_rng(key)) for key in keys]
    return np.array(boxes, dtype=np.int32)


def replay_crop(pixels: Pixels, box: Box | npt.NDArray[np.int32], size: int | tuple[int, int]) -> Pixels:
    """Crop an image and resize the crop (bilinear, antialiased).

    Args:
        pixels: (height, width, 3) uint8.
        box: top, left, height, width.
        size: the side of a square, or (height, width).
    """
    top, left, high, wide = (int(number) for number in box)
    to_height, to_width = (size, size) if isinstance(size, int) else size
    cut = pixels[top : top + high, left : left + wide]
    if cut.shape[:2] == (to_height, to_width):
        return cut
    return np.asarray(Image.fromarray(cut).resize((to_width, to_height), Image.Resampling.BILINEAR))


def chosen_crop(seed: int, epoch: int, sample_id: str, count: int) -> int:
    """The index of the stored crop, out of ``count``, that a sample gets in an epoch."""
    return int(uniform(seed, epoch, sample_id, "crop") * count)
