"""How fast one core of this machine decodes JPEG images and resizes them for training."""

from __future__ import annotations

import io
import time

import numpy as np
from PIL import Image

from siclip.data.images import decode_image
from siclip.data.transforms import fit_image

QUALITY = 90
PICTURE_SIDES = (320, 256)


def decode_rate(size: int, seconds: float = 1.0) -> float:
    """Images per second that one core decodes and resizes to ``size`` px, for a smooth 320 × 256 image with noise.

    Half of the measured rate: the same cores also tokenize, copy batches and run the training loop.

    Args:
        size: px of the square image that training reads.
        seconds: how long to measure.
    """
    height, width = PICTURE_SIDES[1], PICTURE_SIDES[0]
    # Smooth with a little noise, like a photograph: pure noise makes larger files, which decode more slowly.
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (16, 20, 3), dtype=np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    noisy = np.clip(np.asarray(smooth) + rng.normal(0, 8, (height, width, 3)), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(noisy).save(file, "JPEG", quality=QUALITY)
    data, count = file.getvalue(), 0
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        fit_image(decode_image(data), size)
        count += 1
    return count / (time.perf_counter() - started) / 2
