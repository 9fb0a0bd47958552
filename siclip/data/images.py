"""Encoded image → pixels, by one rule for every reader, see `siclip.data.pillow_images`.

JPEG is decoded by simplejpeg if it is installed (twice as fast), otherwise by Pillow; both use libjpeg-turbo with the
same exact transform and upsampling. All other formats are decoded by Pillow.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from siclip.data.pillow_images import (
    BROKEN,
    FORMATS,
    MAX_PIXELS,
    SIDEWAYS,
    UPRIGHT,
    ImageError,
    Problem,
    check_header,
    check_size,
    orientation,
    upright_rgb,
    upright_size,
)
from siclip.data.quiet import quiet_decoders

try:
    import simplejpeg
# The library also runs with torch, timm and open_clip alone.
except ImportError:
    simplejpeg = None

Bytes = bytes | memoryview
JPEG_SIGNATURE = b"\xff\xd8\xff"
SIGNATURES = (JPEG_SIGNATURE, b"\x89PNG\r\n\x1a\n", b"GIF8", b"RIFF", b"II*\x00", b"MM\x00*")
APP1 = b"\xff\xe1"
"""The marker of a JPEG's EXIF and XMP; compressed data never has these two bytes."""
PNG_METADATA = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")
CUT = ("truncat", "premature", "unexpected end", "cut short", "image file has ended")


@dataclass(frozen=True)
class ImageHeader:
    """What is known of an image before its pixels are decoded.

    Attributes:
        height: of the upright image.
        width: of the upright image.
        orientation: that the file states, 1 to 8.
        is_plain: it is a baseline RGB JPEG without EXIF, and upright as stored.
    """

    height: int
    width: int
    orientation: int
    is_plain: bool


def decode_image(
    data: Bytes, where: str = "", *, at_least: int = 0, max_pixels: int = MAX_PIXELS
) -> npt.NDArray[np.uint8]:
    """Decode an image of any of `FORMATS` as upright RGB (height, width, 3).

    Args:
        data: the encoded image.
        where: its location, for the error message.
        at_least: a JPEG whose shorter side is at least twice this is decoded at half its size or less, to a shorter
            side of at least this many pixels (simplejpeg only); 0: always at full size.
        max_pixels: width × height above which nothing is decoded.

    Raises:
        ImageError: a `UserError` that includes ``where``: the bytes cannot be decoded completely; or, known from the
            header, there are too many pixels, several frames, or a depth without a fixed range.
    """
    with _named(data, where):
        if simplejpeg is not None and bytes(data[:3]) == JPEG_SIGNATURE:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
            check_size(width, height, max_pixels)
            # simplejpeg cannot convert these to RGB; Pillow can.
            if colours not in ("CMYK", "YCCK"):
                pixels = _decode_jpeg(data, height, width, at_least)
                turned = _jpeg_orientation(data)
                return np.array(Image.fromarray(pixels).transpose(UPRIGHT[turned])) if turned in UPRIGHT else pixels
        with _opened(data) as image:
            return np.array(upright_rgb(image, max_pixels))


def decode_as_pillow(data: Bytes, where: str = "") -> Image.Image:
    """Decode an image as CLIP_benchmark and DataComp do: the first frame with Pillow's ``convert("RGB")``.

    Only for evaluation sets of other projects, whose published figures come from such pixels: EXIF and XMP
    orientation is not applied (Pillow itself turns a TIFF by its tag), transparency is dropped, and 16 bits are
    clipped to 8. Limits and formats are those of `decode_image`.

    Raises:
        ImageError: the bytes cannot be decoded, or there are too many pixels.
    """
    with _named(data, where), _opened(data) as image:
        check_size(*image.size)
        rgb = image.convert("RGB")
        # Without EXIF and transparent colour, which `siclip.preprocess` would apply.
        rgb.info = {}
        return rgb


def image_size(data: Bytes, where: str = "") -> tuple[int, int]:
    """(height, width) of the upright image, from its header.

    Raises:
        ImageError: the header cannot be read, or an image of this size is not decoded.
    """
    with _named(data, where):
        if simplejpeg is not None and bytes(data[:3]) == JPEG_SIGNATURE:
            height, width, _, _ = simplejpeg.decode_jpeg_header(data)
            check_size(width, height)
            return (width, height) if _jpeg_orientation(data) in SIDEWAYS else (height, width)
    header = read_header(data, where)
    return header.height, header.width


def read_header(data: Bytes, where: str = "", *, max_pixels: int = MAX_PIXELS) -> ImageHeader:
    """Read a header with Pillow, and refuse an image for all that is known from it.

    Raises:
        ImageError: as `decode_image`.
    """
    with _named(data, where), _opened(data) as image:
        check_header(image, max_pixels)
        turned = 1
        # Pillow decodes a PNG to look for metadata behind its pixels.
        if image.format != "PNG" or any(name in bytes(data) for name in PNG_METADATA):
            turned = orientation(image)
        height, width = upright_size(image, turned)
        plain = image.format == "JPEG" and image.mode == "RGB" and turned == 1
        return ImageHeader(
            height, width, turned, plain and not ({"progressive", "progression", "exif"} & set(image.info))
        )


@contextmanager
def _opened(data: Bytes) -> Iterator[Image.Image]:
    quiet_decoders()
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        start = bytes(data[:12])
        if not data:
            raise ImageError(Problem.NOT_AN_IMAGE, "it has no bytes") from None
        begins = f"{len(data)} bytes that begin with {start!r}"
        if start.startswith(SIGNATURES) and (start[:4] != b"RIFF" or start[8:12] in (b"WEBP", b"")):
            raise OSError(f"its header cannot be read, {begins}") from None
        raise ImageError(Problem.NOT_AN_IMAGE, f"none of {', '.join(FORMATS)}: {begins}") from None
    with image:
        yield image


@contextmanager
def _named(data: Bytes, where: str) -> Iterator[None]:
    """Turn whatever a decoder raises into an `ImageError` that names the image."""
    what = f"the image{f' of {where}' if where else ''} ({len(data)} bytes)"
    try:
        yield
    except ImageError as error:
        raise ImageError(error.problem, error.detail, what) from None
    except Image.DecompressionBombError as error:
        raise ImageError(Problem.TOO_LARGE, str(error).rstrip("."), what) from None
    except BROKEN as error:
        detail = str(error).rstrip(".") or type(error).__name__
        raise ImageError(_problem(bytes(data), detail), detail, what) from None


def _problem(data: bytes, message: str) -> Problem:
    if "Decompressed data too large" in message:
        return Problem.TOO_LARGE
    cut = any(word in message.lower() for word in CUT) or _ends_early(data)
    return Problem.TRUNCATED if cut else Problem.DAMAGED


def _ends_early(data: bytes) -> bool:
    """Return whether the end mark or the size that the format requires is missing."""
    if data.startswith(JPEG_SIGNATURE):
        return b"\xff\xd9" not in data[-1024:]
    if data.startswith(b"\x89PNG"):
        return b"IEND" not in data[-1024:]
    if data.startswith(b"RIFF") and len(data) >= 8:
        return bool(struct.unpack("<I", data[4:8])[0] + 8 > len(data))
    return len(data) < 32


def _jpeg_orientation(data: Bytes) -> int:
    # Almost every image of a dataset is without metadata, and opening it with Pillow costs as much as decoding it.
    if APP1 not in bytes(data):
        return 1
    with _opened(data) as image:
        return orientation(image)


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
