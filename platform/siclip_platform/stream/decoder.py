"""How an image file becomes the pixels of a batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from siclip.data.augment import load_crop, load_pixels, replay_operations
from siclip.data.config import AugmentConfig
from siclip_platform.stream.windows import Sample

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Decoder:
    """Decodes, augments and resizes; the trainer and the tasks of Ray Data do it alike.

    Attributes:
        seed: decides crops and augmentation, with the sample's epoch and id.
        image_size: height and width of the pixels.
        augment: how images are augmented.
        scaled: decode JPEG at a reduced size where the crop allows it.
    """

    seed: int
    image_size: int
    augment: AugmentConfig
    scaled: bool

    def pixels(self, sample: Sample) -> Pixels:
        """Return the pixels (size, size, 3) of a sample, in the crop of its stored embeddings if it has some.

        Raises:
            UserError: the image cannot be decoded.
        """
        where, size = f"sample {sample.id}", self.image_size
        if sample.pixels is not None:
            return np.frombuffer(sample.pixels, dtype=np.uint8).reshape(size, size, 3)
        if sample.embeddings is not None:
            stored, row = sample.embeddings
            _, box, operations = stored.view(row, self.seed, sample.epoch, sample.id)
            crop = load_crop(sample.image, where, size, box, scaled=self.scaled)
            return replay_operations(crop, operations) if operations else crop
        return load_pixels(
            sample.image, where, size, self.augment, (self.seed, sample.epoch, sample.id), scaled=self.scaled
        )
