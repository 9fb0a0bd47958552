"""An image of a source → an image of a dataset: checked by decoding, upright, downscaled, JPEG."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, UnidentifiedImageError
from pydantic import Field

from siclip.config import Config
from siclip.data.images import BROKEN, JPEG_SIGNATURE, REMEDY, decode_image
from siclip.errors import UserError
from siclip_platform.datasets.importing.sources.sample import Reason, Rejection

LONGEST_SIDE = 65_500
"""Pixels; the limit of JPEG."""
DECODING = (*BROKEN, TypeError, KeyError, AttributeError, OverflowError, zlib.error)
"""What Pillow's plugins raise for damaged files."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")
SIGNATURES = (JPEG_SIGNATURE, b"\x89PNG\r\n\x1a\n", b"GIF8", b"RIFF", b"II*\x00", b"MM\x00*")
ORIENTATION = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
CUT = ("truncat", "premature", "unexpected end", "cut short", "image file has ended")


class ImageRules(Config):
    """How images are checked and stored.

    Attributes:
        size: maximum of the shorter side of the stored image, in pixels.
        quality: of JPEG.
        min_side: images whose shorter side is smaller are rejected.
        max_pixels: images with more pixels (width × height) are not decoded.
    """

    size: int = Field(256, ge=16)
    quality: int = Field(90, ge=1, le=100)
    min_side: int = Field(32, ge=1)
    # Pillow warns above the default and refuses above the maximum.
    max_pixels: int = Field(89_478_485, ge=1, le=178_956_970)


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
    never upscaled. Transparent pixels are composed over white. A baseline RGB JPEG without EXIF that is small enough
    keeps its bytes. Colour profiles are not applied.

    Raises:
        Rejection: the image cannot be used.
    """
    header = _header(data, rules)
    pixels = _pixels(data, header)
    if header.orientation in UPRIGHT:
        pixels = np.array(Image.fromarray(pixels).transpose(UPRIGHT[header.orientation]))
    height, width = pixels.shape[:2]
    if min(width, height) <= rules.size and header.keeps:
        return Prepared(data, width, height, pixels)
    if min(width, height) > rules.size:
        scale = rules.size / min(width, height)
        size = (max(round(width * scale), rules.size), max(round(height * scale), rules.size))
        pixels = np.array(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
        width, height = size
    encoded = simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels), quality=rules.quality, colorsubsampling="420", fastdct=False
    )
    return Prepared(encoded, width, height, pixels)


@dataclass(frozen=True)
class _Header:
    format: str
    mode: str
    orientation: int
    keeps: bool


def _header(data: bytes, rules: ImageRules) -> _Header:
    """Read the header, and reject an image for everything that is known without decoding it."""
    if not data:
        raise Rejection(Reason.NOT_AN_IMAGE, "it has no bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                _check_size(image, rules)
                frames = getattr(image, "n_frames", 1) if image.format != "MPO" else 1
                if frames > 1:
                    raise Rejection(Reason.ANIMATED, f"{image.format} of {frames} frames")
                return _Header(image.format or "", image.mode, _orientation(image), _keeps(image))
    except Image.DecompressionBombError as error:
        raise Rejection(Reason.DECOMPRESSION_BOMB, str(error)) from None
    except UnidentifiedImageError:
        begins = f"{len(data)} bytes that begin with {data[:12]!r}"
        if data.startswith(SIGNATURES) and (data[:4] != b"RIFF" or data[8:12] in (b"WEBP", b"")):
            raise _broken(data, f"its header cannot be read, {begins}") from None
        raise Rejection(Reason.NOT_AN_IMAGE, begins) from None
    except DECODING as error:
        raise _broken(data, str(error)) from None


def _check_size(image: Image.Image, rules: ImageRules) -> None:
    width, height = image.size
    if width * height > rules.max_pixels:
        detail = f"{width} × {height} pixels, more than {rules.max_pixels}"
        raise Rejection(Reason.DECOMPRESSION_BOMB, detail)
    if max(width, height) > LONGEST_SIDE:
        raise Rejection(Reason.DECOMPRESSION_BOMB, f"{width} × {height} pixels, a side above {LONGEST_SIDE}")
    if min(width, height) < rules.min_side:
        raise Rejection(Reason.TOO_SMALL, f"{width} × {height} pixels, a side below {rules.min_side}")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except (*BROKEN, TypeError, KeyError):
        # The pixels of an image with damaged EXIF may be intact.
        return 1


def _keeps(image: Image.Image) -> bool:
    """Return whether the image is a baseline RGB JPEG without EXIF."""
    info = image.info
    return image.format == "JPEG" and image.mode == "RGB" and not ({"progressive", "progression", "exif"} & set(info))


def _pixels(data: bytes, header: _Header) -> npt.NDArray[np.uint8]:
    try:
        if header.mode.startswith("I;16"):
            with Image.open(io.BytesIO(data)) as image:
                grey = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
            return np.repeat(grey[:, :, None], 3, axis=2)
        if header.mode in ("I", "F"):
            raise Rejection(
                Reason.DAMAGED_IMAGE, f"{header.format} with pixels of mode {header.mode!r}, not of 8 bits"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return decode_image(data)
    except UserError as error:
        message = str(error).partition("cannot be decoded: ")[2].removesuffix(f". {REMEDY}")
        raise _broken(data, message) from None
    except DECODING as error:
        raise _broken(data, str(error)) from None


def _broken(data: bytes, message: str) -> Rejection:
    if "Decompressed data too large" in message:
        return Rejection(Reason.DECOMPRESSION_BOMB, message)
    cut = any(word in message.lower() for word in CUT) or _ends_early(data)
    return Rejection(Reason.TRUNCATED if cut else Reason.DAMAGED_IMAGE, message)


def _ends_early(data: bytes) -> bool:
    """Return whether the end mark or the size that the format requires is missing."""
    if data.startswith(JPEG_SIGNATURE):
        return b"\xff\xd9" not in data[-1024:]
    if data.startswith(b"\x89PNG"):
        return b"IEND" not in data[-1024:]
    if data.startswith(b"RIFF") and len(data) >= 8:
        return bool(struct.unpack("<I", data[4:8])[0] + 8 > len(data))
    return len(data) < 32
