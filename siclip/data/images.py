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

JPEG_SIGNATURE = b"\xff\xd8\xff"
BROKEN = (OSError, ValueError, SyntaxError, EOFError, IndexError, struct.error, Image.DecompressionBombError)
"""What Pillow's decoders raise for bytes that are not the image they claim to be."""


def decode_image(data: bytes, place: str = "") -> npt.NDArray[np.uint8]:
    """Decode JPEG, PNG, WebP or whatever else Pillow reads, as RGB (height, width, 3).

    Transparent pixels are laid over white. The orientation tag is not applied.

    Raises:
        UserError: the bytes cannot be decoded completely; the message names ``place``.
    """
    try:
        if simplejpeg is not None and data.startswith(JPEG_SIGNATURE) and not _is_cmyk(data):
            pixels: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(data, fastdct=False, fastupsample=False)
            return pixels
        return _decode_with_pillow(data)
    except BROKEN as error:
        where = f" of {place}" if place else ""
        raise UserError(
            f"the image{where} ({len(data)} bytes) cannot be decoded: {error}. Leave the sample out or "
            "encode it again as JPEG, PNG or WebP"
        ) from None


def _is_cmyk(data: bytes) -> bool:
    """simplejpeg cannot turn these into RGB; Pillow can."""
    colorspace: str = simplejpeg.decode_jpeg_header(data)[2]
    return colorspace in ("CMYK", "YCCK")


def _decode_with_pillow(data: bytes) -> npt.NDArray[np.uint8]:
    with Image.open(io.BytesIO(data)) as image:
        if image.has_transparency_data:
            layer = image.convert("RGBA")
            opaque = Image.new("RGBA", layer.size, "white")
            return np.array(Image.alpha_composite(opaque, layer).convert("RGB"))
        return np.array(image.convert("RGB"))
