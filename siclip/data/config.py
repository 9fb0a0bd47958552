"""Configs of the data: free of torch, so that a recipe is read at once."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from siclip.config import Config, Weight

MAGNITUDES = 31  # levels of RandAugment


class CaptionPolicy(Config):
    """How a caption is drawn.

    ``synthetic_share``: the probability of a synthetic caption; a sample that has only one kind gets one of that
    kind. ``synthetic_captions``: how many synthetic ones of a sample may be drawn, the first in order; 0: all.
    ``weights``: of a caption among its kind, by the model that wrote it, or else by its source; 1 where neither is
    named. A kind whose captions all weigh 0 is drawn as if it were not there.
    """

    synthetic_share: float = Field(0.5, ge=0, le=1)
    synthetic_captions: int = Field(0, ge=0)
    weights: dict[str, Weight] = Field({})

    def weight(self, caption: Mapping[str, str | None]) -> float:
        for name in (caption.get("model"), caption["source"]):
            if name is not None and name in self.weights:
                return self.weights[name]
        return 1.0


class AugmentConfig(Config):
    """What happens to an image between decoding and the batch; by default nothing but resize and centre crop.

    No flip is offered: captions say left and right.

    ``crop_scale``: a random crop keeps between this share and all of the area (aspect ratio 3:4 to 4:3) and is
    resized; 1: no random crop. ``jitter``: brightness, contrast and saturation each change by a factor of
    [1 - jitter, 1 + jitter]. ``hue``: shift of the hue in [-hue, hue] of a full turn. ``rand_augment``: operations of
    RandAugment (arXiv 1909.13719), of ``rand_augment_magnitude`` out of 30.
    """

    crop_scale: float = Field(1.0, gt=0, le=1)
    jitter: float = Field(0.0, ge=0, le=1)
    hue: float = Field(0.0, ge=0, le=0.5)
    rand_augment: int = Field(0, ge=0)
    rand_augment_magnitude: int = Field(9, ge=0, lt=MAGNITUDES)

    @property
    def is_off(self) -> bool:
        return self == AugmentConfig(rand_augment_magnitude=self.rand_augment_magnitude)
