"""What embedding does to a dataset."""

from __future__ import annotations

from pydantic import Field

from siclip.config import Config
from siclip.data.quantize import Numbers
from siclip_platform.datasets.derived.embeddings.teacher import Precision


class EmbedConfig(Config):
    """``teacher``: a checkpoint of ours or ``open_clip:NAME:TAG``. ``augmentations``: K crops of each image, of
    ``crop_scale`` to all of its area, drawn by (``seed``, id, number); at crop_scale 1 the largest square.

    ``image_size``: what a crop is resized to before the teacher resizes it to its own: the student's size gives what
    the teacher gives online; default: the teacher's. ``captions``: those beside the dataset that are embedded behind
    its own. ``batch_size``: images or texts that the teacher gets together.
    """

    teacher: str
    augmentations: int = Field(1, ge=1)
    crop_scale: float = Field(0.9, gt=0, le=1)
    seed: int = Field(0, ge=0)
    image_size: int | None = Field(None, ge=8)
    numbers: Numbers = "bf16"
    captions: tuple[str, ...] = ()
    batch_size: int = Field(256, ge=1)
    precision: Precision = "fp32"
