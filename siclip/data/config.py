"""Configs of the data. They do not import torch, so that reading a recipe is fast."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from siclip.config import LARGEST_COUNT, Config, Weight

# Levels of RandAugment, 0 to 30, as in torchvision.
MAGNITUDES = 31


class CaptionPolicy(Config):
    """How a sample's caption is drawn.

    Attributes:
        synthetic_share: the probability of a synthetic caption. A sample that has only original or only synthetic
            captions gets one of those.
        synthetic_captions: use only the first N synthetic captions of a sample; 0: all.
        weights: weight of a caption among those of its source, by the model that wrote it or else by its source;
            1 if neither is listed. If all captions of a source have weight 0, the other source is used.
    """

    synthetic_share: float = Field(0.5, ge=0, le=1)
    synthetic_captions: int = Field(0, ge=0, le=LARGEST_COUNT)
    weights: dict[str, Weight] = Field({})

    def weight(self, caption: Mapping[str, str | None]) -> float:
        """The weight of a caption."""
        for name in (caption.get("model"), caption["source"]):
            if name is not None and name in self.weights:
                return self.weights[name]
        return 1.0


class AugmentConfig(Config):
    """Augmentation of an image between decoding and the batch. The default is resize and centre crop only.

    There is no flip, because captions mention left and right.

    Attributes:
        crop_scale: a random crop keeps between this share and all of the area (aspect ratio 3:4 to 4:3) and is
            resized; 1: no random crop.
        jitter: brightness, contrast and saturation are each multiplied by a factor in [1 - jitter, 1 + jitter].
        hue: the hue is shifted by up to this share of a full turn, in either direction.
        rand_augment: number of RandAugment operations per image (arXiv 1909.13719).
        rand_augment_magnitude: their magnitude, 0 to 30.
    """

    crop_scale: float = Field(1.0, gt=0, le=1)
    jitter: float = Field(0.0, ge=0, le=1)
    hue: float = Field(0.0, ge=0, le=0.5)
    rand_augment: int = Field(0, ge=0, le=100)
    rand_augment_magnitude: int = Field(9, ge=0, lt=MAGNITUDES)

    @property
    def is_off(self) -> bool:
        """Whether images are not augmented; the magnitude has no effect without operations."""
        return self == AugmentConfig(rand_augment_magnitude=self.rand_augment_magnitude)
