"""Settings of embedding."""

from __future__ import annotations

from pydantic import Field

from siclip.config import LARGEST_BATCH, LARGEST_CONTEXT, Config
from siclip.data.quantize import Numbers
from siclip_platform.datasets.derived.embeddings.teacher import Precision


class EmbedConfig(Config):
    """Settings of embedding.

    Attributes:
        teacher: a siclip checkpoint or ``open_clip:NAME:TAG``.
        augmentations: K, the number of crops per image.
        crop_scale: a crop has at least this share of the image's area; 1: the largest centred square.
        seed: determines the crops together with the image's id and the crop's number.
        image_size: size that a crop is resized to before the teacher resizes it to its own. The student's size gives
            the embeddings that the teacher computes in training. Default: the teacher's.
        numbers: number format on disk.
        captions: caption sets beside the dataset that are embedded after its own captions.
        batch_size: images or texts per call of the teacher.
        precision: of the teacher.
    """

    teacher: str
    augmentations: int = Field(1, ge=1, le=1024)
    crop_scale: float = Field(0.9, gt=0, le=1)
    seed: int = Field(0, ge=0, lt=2**64)
    image_size: int | None = Field(None, ge=8, le=LARGEST_CONTEXT)
    numbers: Numbers = "bf16"
    captions: tuple[str, ...] = ()
    batch_size: int = Field(256, ge=1, le=LARGEST_BATCH)
    precision: Precision = "fp32"
