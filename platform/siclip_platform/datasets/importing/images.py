"""An image of a source → an image of a dataset: decoded as everywhere, downscaled, JPEG."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image
from pydantic import Field

from siclip.config import Config
from siclip.data.images import ImageHeader, decode_image, read_header
from siclip.data.pillow_images import MAX_PIXELS, ImageError, Problem
from siclip_platform.datasets.importing.sources.sample import Reason, Rejection

LONGEST_SIDE = 65_500
"""Pixels; the limit of JPEG."""
REASONS = {
    Problem.NOT_AN_IMAGE: Reason.NOT_AN_IMAGE,
    Problem.TRUNCATED: Reason.TRUNCATED,
    Problem.DAMAGED: Reason.DAMAGED_IMAGE,
    Problem.TOO_LARGE: Reason.DECOMPRESSION_BOMB,
    Problem.ANIMATED: Reason.ANIMATED,
    Problem.UNSUPPORTED: Reason.DAMAGED_IMAGE,
}


class ImageRules(Config):
    """How images are checked and stored.

    Attributes:
        size: maximum of the shorter side of the stored image, in pixels.
        quality: of JPEG.
        min_side: images whose shorter side is smaller are rejected.
        max_pixels: images with more pixels (width × height) are not decoded.
    """

    size: int = Field(256, ge=16, le=16_384)
    quality: int = Field(90, ge=1, le=100)
    min_side: int = Field(32, ge=1, le=16_384)
    # Pillow warns above the default and refuses above the maximum.
    max_pixels: int = Field(MAX_PIXELS, ge=1, le=178_956_970)


@dataclass(frozen=True)
class Prepared:
    """A JPEG, its size in pixels, and its RGB pixels (height, width, 3)."""

    data: bytes
    width: int
    height: int
    pixels: npt.NDArray[np.uint8]


def prepare_image(data: bytes, rules: ImageRules) -> Prepared:
    """Decode an image completely, turn it upright, downscale it if it is larger, and encode it as JPEG (4:2:0).

    The image is resized once, with Pillow's antialiased bicubic filter, to a shorter side of ``rules.size``; it is
    never upscaled. A baseline RGB JPEG that is small enough, has no EXIF and states no orientation keeps its bytes.
    How it is decoded: `siclip.data.pillow_images.upright_rgb`.

    Raises:
        Rejection: the image cannot be used.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns of what is refused here, or is harmless.
            warnings.simplefilter("ignore")
            header = read_header(data, max_pixels=rules.max_pixels)
            _check_sides(header, rules)
            pixels = decode_image(data, max_pixels=rules.max_pixels)
    except ImageError as error:
        raise Rejection(REASONS[error.problem], error.detail) from None
    height, width = pixels.shape[:2]
    if min(width, height) <= rules.size and header.is_plain:
        return Prepared(data, width, height, pixels)
    if min(width, height) > rules.size:
        scale = rules.size / min(width, height)
        size = (max(round(width * scale), rules.size), max(round(height * scale), rules.size))
        pixels = np.array(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
        width, height = size
    if width * height > MAX_PIXELS:
        raise Rejection(Reason.DECOMPRESSION_BOMB, f"{width} × {height} pixels as stored, more than training reads")
    encoded = simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels), quality=rules.quality, colorsubsampling="420", fastdct=False
    )
    return Prepared(encoded, width, height, pixels)


def _check_sides(header: ImageHeader, rules: ImageRules) -> None:
    width, height = header.width, header.height
    if max(width, height) > LONGEST_SIDE:
        raise Rejection(Reason.DECOMPRESSION_BOMB, f"{width} × {height} pixels, a side above {LONGEST_SIDE}")
    if min(width, height) < rules.min_side:
        raise Rejection(Reason.TOO_SMALL, f"{width} × {height} pixels, a side below {rules.min_side}")
