"""What a captioner is: one method, and what is recorded of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

LARGEST_SIDE = 1024
"""In pixels, above what models of images and texts look at: hundreds of images are passed on together."""
Pixels = npt.NDArray[np.uint8]
"""(height, width, 3)"""


Prepare = Callable[[Pixels], Pixels]
"""What a captioner needs of an image, computed on another processor; picklable."""


class Captioner(Protocol):
    """Writes texts for images. A text depends on its image, the id, its number and the seed, not on the batch.

    Attributes:
        name: recorded with every caption.
        hash: of the weights.
        prepare: what every image passes before `captions`.
    """

    name: str
    hash: str
    prepare: Prepare

    def captions(self, images: Sequence[Pixels], ids: Sequence[str], per_image: int) -> list[list[str]]:
        """Return ``per_image`` texts for each prepared image.

        Args:
            images: prepared.
            ids: one for each image; with the seed they determine what is drawn.
            per_image: number of texts.
        """


def whole(pixels: Pixels) -> Pixels:
    """Prepare an image for a captioner that resizes by itself: only sides above `LARGEST_SIDE` are reduced."""
    height, width = pixels.shape[:2]
    if max(height, width) <= LARGEST_SIDE:
        return pixels
    scale = LARGEST_SIDE / max(height, width)
    size = (max(1, round(scale * width)), max(1, round(scale * height)))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
