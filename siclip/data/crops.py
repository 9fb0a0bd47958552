"""Crops that are decided once and replayed: boxes in pixels of the whole decoded image."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from siclip.data.augment import Box, Pixels, crop_box
from siclip.data.captions import stable_id, uniform


def seeded_boxes(
    height: int, width: int, count: int, scale: float, seed: int, sample_id: str
) -> npt.NDArray[np.int32]:
    """``count`` crops (count, 4) of an image, decided by (seed, sample id, number) alone.

    Each keeps ``scale`` to all of the area at an aspect ratio of 3:4 to 4:3 (see `crop_box`). At scale 1 all are the
    largest square in the middle.
    """
    if scale == 1:
        side = min(height, width)
        boxes = [((height - side) // 2, (width - side) // 2, side, side)] * count
    else:
        keys = (stable_id(f"crop/{seed}/{sample_id}/{number}") for number in range(count))
        boxes = [crop_box(height, width, scale, np.random.default_rng(key)) for key in keys]
    return np.array(boxes, dtype=np.int32)


def replay_crop(pixels: Pixels, box: Box | npt.NDArray[np.int32], size: int | tuple[int, int]) -> Pixels:
    """(height, width, 3) uint8 → what the box (top, left, height, width) cuts out, resized (bilinear, antialiased)
    to ``size``, one number for a square or (height, width)."""
    top, left, high, wide = (int(number) for number in box)
    to_height, to_width = (size, size) if isinstance(size, int) else size
    cut = pixels[top : top + high, left : left + wide]
    if cut.shape[:2] == (to_height, to_width):
        return cut
    return np.asarray(Image.fromarray(cut).resize((to_width, to_height), Image.Resampling.BILINEAR))


def chosen_crop(seed: int, epoch: int, sample_id: str, count: int) -> int:
    """Which of ``count`` stored crops a sample gets in an epoch."""
    return int(uniform(seed, epoch, sample_id, "crop") * count)
