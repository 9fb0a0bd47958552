"""Encoded image → pixels.

JPEG goes through simplejpeg where it is installed (twice as fast) and through Pillow where it is not; both
decode with the same exact transform and upsampling of libjpeg-turbo. Everything else goes through Pillow.
"""

from __future__ import annotations

import io
import struct

import numpy as np
import numpy.typing as npt
from PIL import Image

from siclip.errors import UserError

try:
    import simplejpeg
except ImportError:  # a box with torch, timm and open_clip alone
    simplejpeg = None

Bytes = bytes | memoryview
JPEG_SIGNATURE = b"\xff\xd8\xff"
BROKEN = (OSError, ValueError, SyntaxError, EOFError, IndexError, struct.error, Image.DecompressionBombError)
"""What Pillow's decoders raise for bytes that are not the image they claim to be."""


def decode_image(data: Bytes, place: str = "", *, at_least: int = 0) -> npt.NDArray[np.uint8]:
    """Decode JPEG, PNG, WebP or whatever else Pillow reads, as RGB (height, width, 3).

    Transparent pixels are laid over white. The orientation tag is not applied.

    ``at_least``: a JPEG whose shorter side is twice as long or more is decoded at half its size or less, to a shorter
    side of at least that (simplejpeg only); 0: always whole.

    Raises:
        UserError: the bytes cannot be decoded completely; the message names ``place``.
    """
    try:
        if simplejpeg is not None and bytes(data[:3]) == JPEG_SIGNATURE:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
            if colours not in ("CMYK", "YCCK"):  # simplejpeg cannot turn these into RGB; Pillow can
                return _decode_jpeg(data, height, width, at_least)
        return _decode_with_pillow(data)
    except BROKEN as error:
        raise _undecodable(data, place, error) from None


def _undecodable(data: Bytes, place: str, error: Exception) -> UserError:
    where = f" of {place}" if place else ""
    return UserError(
        f"the image{where} ({len(data)} bytes) cannot be decoded: {error}. Leave the sample out or encode it again "
        "as JPEG, PNG or WebP"
    )


def image_size(data: Bytes, place: str = "") -> tuple[int, int]:
    """(height, width) of an encoded image, from its header.

    Raises:
        UserError: there is none that can be read; the message names ``place``.
    """
    try:
        if simplejpeg is not None and bytes(data[:3]) == JPEG_SIGNATURE:
            height, width, _, _ = simplejpeg.decode_jpeg_header(data)
            return height, width
        with Image.open(io.BytesIO(data)) as image:
            return image.height, image.width
    except BROKEN as error:
        raise _undecodable(data, place, error) from None


def _decode_jpeg(data: Bytes, height: int, width: int, at_least: int) -> npt.NDArray[np.uint8]:
    short = min(height, width)
    scale = {}
    if at_least and short >= 2 * at_least:
        sides = (-(-side * at_least // short) for side in (height, width))
        scale = dict(zip(("min_height", "min_width"), sides, strict=True)) | {"min_factor": 2}
    pixels: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(data, fastdct=False, fastupsample=False, **scale)
    return pixels


def _decode_with_pillow(data: Bytes) -> npt.NDArray[np.uint8]:
    with Image.open(io.BytesIO(data)) as image:
        if image.has_transparency_data:
            layer = image.convert("RGBA")
            opaque = Image.new("RGBA", layer.size, "white")
            return np.array(Image.alpha_composite(opaque, layer).convert("RGB"))
        return np.array(image.convert("RGB"))
