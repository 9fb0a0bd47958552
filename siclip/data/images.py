"""Encoded image → pixels.

JPEG is decoded by simplejpeg if it is installed (twice as fast), otherwise by Pillow; both use libjpeg-turbo with the
same exact transform and upsampling. All other formats are decoded by Pillow.
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
# The library also runs with torch, timm and open_clip alone.
except ImportError:
    simplejpeg = None

Bytes = bytes | memoryview
JPEG_SIGNATURE = b"\xff\xd8\xff"
BROKEN = (OSError, ValueError, SyntaxError, EOFError, IndexError, struct.error, Image.DecompressionBombError)
"""What the decoders raise for corrupt bytes."""
REMEDY = "Remove the sample or encode it again as JPEG, PNG or WebP"


def decode_image(data: Bytes, where: str = "", *, at_least: int = 0) -> npt.NDArray[np.uint8]:
    """Decode JPEG, PNG, WebP or any other format that Pillow reads, as RGB (height, width, 3).

    Transparent images are composited over white. The EXIF orientation is not applied.

    Args:
        data: the encoded image.
        where: its location, for the error message.
        at_least: a JPEG whose shorter side is at least twice this is decoded at half its size or less, to a shorter
            side of at least this many pixels (simplejpeg only); 0: always at full size.

    Raises:
        UserError: the bytes cannot be decoded completely; the message includes ``where``.
    """
    try:
        if simplejpeg is not None and bytes(data[:3]) == JPEG_SIGNATURE:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
            # simplejpeg cannot convert these to RGB; Pillow can.
            if colours not in ("CMYK", "YCCK"):
                return _decode_jpeg(data, height, width, at_least)
        return _decode_with_pillow(data)
    except BROKEN as error:
        raise _undecodable(data, where, error) from None


def _undecodable(data: Bytes, where: str, error: Exception) -> UserError:
    of = f" of {where}" if where else ""
    return UserError(f"the image{of} ({len(data)} bytes) cannot be decoded: {error}. {REMEDY}")


def image_size(data: Bytes, where: str = "") -> tuple[int, int]:
    """(height, width) of an encoded image, from its header.

    Raises:
        UserError: the header cannot be read; the message includes ``where``.
    """
    try:
        if simplejpeg is not None and bytes(data[:3]) == JPEG_SIGNATURE:
            height, width, _, _ = simplejpeg.decode_jpeg_header(data)
            return height, width
        with Image.open(io.BytesIO(data)) as image:
            return image.height, image.width
    except BROKEN as error:
        raise _undecodable(data, where, error) from None


def _decode_jpeg(data: Bytes, height: int, width: int, at_least: int) -> npt.NDArray[np.uint8]:
    short = min(height, width)
    scale = {}
    if at_least and short >= 2 * at_least:
        # Rounded up, so that the decoder does not choose a scale below ``at_least``.
        sides = (-(-side * at_least // short) for side in (height, width))
        scale = dict(zip(("min_height", "min_width"), sides, strict=True)) | {"min_factor": 2}
    # Exact transform and upsampling, as in Pillow: pixels must not depend on what is installed.
    pixels: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(data, fastdct=False, fastupsample=False, **scale)
    return pixels


def _decode_with_pillow(data: Bytes) -> npt.NDArray[np.uint8]:
    with Image.open(io.BytesIO(data)) as image:
        if image.has_transparency_data:
            layer = image.convert("RGBA")
            opaque = Image.new("RGBA", layer.size, "white")
            return np.array(Image.alpha_composite(opaque, layer).convert("RGB"))
        return np.array(image.convert("RGB"))
