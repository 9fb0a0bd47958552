"""An opened Pillow image → upright 8-bit RGB: the one rule for size, orientation, depth, colour and transparency.

Every reader of the library and of the platform goes through here, except the readers of evaluation sets that must
agree with CLIP_benchmark, see `siclip.data.images.decode_as_pillow`.
"""

from __future__ import annotations

import re
import struct
import zlib
from enum import StrEnum
from typing import Any

import numpy as np
from PIL import Image

from siclip.errors import UserError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")
"""What is read. Pillow's other plugins are never called: one of them starts an interpreter of PostScript."""
BROKEN = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""What the decoders raise for damaged files; each of these was seen, or is raised in a plugin of Pillow."""

MAX_PIXELS = 89_478_485
"""Width × height that is decoded; above it Pillow warns of a decompression bomb."""
MAX_ASPECT = 1000
"""Longer side ÷ shorter side: a line of one pixel would grow without bound when its shorter side is resized."""

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = (5, 6, 7, 8)
"""Orientations that swap width and height."""
_ORIENTATION, _WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC = 0x0112, 256, 257, 258, 262
_WHITE_IS_ZERO = 0
_XMP = re.compile(rb"tiff:Orientation\s*(?:=\s*[\"']|>)\s*([1-8])")
_KEY_SCALES = {"L;2": 85, "L;4": 17}
_ENCODE = "encode it again as JPEG, PNG or WebP"


class Problem(StrEnum):
    """Why an image is refused."""

    NOT_AN_IMAGE = "not an image"
    TRUNCATED = "truncated"
    DAMAGED = "damaged"
    TOO_LARGE = "too large"
    ANIMATED = "animated"
    UNSUPPORTED = "unsupported pixels"


REMEDIES = {
    Problem.NOT_AN_IMAGE: f"Remove it, or {_ENCODE}",
    Problem.TRUNCATED: f"Remove it, or {_ENCODE}",
    Problem.DAMAGED: f"Remove it, or {_ENCODE}",
    Problem.TOO_LARGE: "Remove it, or scale it down",
    Problem.ANIMATED: "Remove it, or store one frame",
    Problem.UNSUPPORTED: "Convert it to 8 bits per channel",
}


class ImageError(UserError):
    """An image cannot be used.

    Args:
        problem: why.
        detail: the same in words.
        what: names the image.
    """

    def __init__(self, problem: Problem, detail: str, what: str = "the image") -> None:
        super().__init__(f"{what} cannot be decoded: {detail}. {REMEDIES[problem]}")
        self.problem, self.detail, self.what = problem, detail, what

    def __reduce__(self) -> tuple[Any, ...]:
        # An exception is pickled with its message alone, which is not what __init__ takes.
        return ImageError, (self.problem, self.detail, self.what)


def check_size(width: int, height: int, max_pixels: int = MAX_PIXELS) -> None:
    """Refuse an image by the size that its header claims.

    Raises:
        ImageError: it has more pixels than ``max_pixels``, or its sides differ by a factor above `MAX_ASPECT`.
    """
    size = f"{width} × {height} pixels"
    if width * height > max_pixels:
        raise ImageError(Problem.TOO_LARGE, f"{size}, more than {max_pixels}")
    if max(width, height) > MAX_ASPECT * max(1, min(width, height)):
        raise ImageError(Problem.TOO_LARGE, f"{size}, one side more than {MAX_ASPECT} times the other")


def check_header(image: Image.Image, max_pixels: int = MAX_PIXELS) -> None:
    """Refuse an image for all that is known before its pixels are decoded.

    A photo with its preview (MPO, as phones write it) counts as one frame.

    Raises:
        ImageError: as `check_size`; it has several frames; or its pixels have no defined range from black to white.
    """
    check_size(*image.size, max_pixels)
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise ImageError(Problem.ANIMATED, f"{image.format} of {getattr(image, 'n_frames', 'several')} frames")
    # A PGM of 16 bits has mode I, and Pillow scales it to 0 … 65535.
    if image.mode == "F" or (image.mode == "I" and image.format != "PPM"):
        detail = f"{image.format or 'an image'} with pixels of mode {image.mode!r}, which have no fixed range"
        raise ImageError(Problem.UNSUPPORTED, detail)


def orientation(image: Image.Image) -> int:
    """The orientation that the file states, 1 to 8: in EXIF (a TIFF's own tag, a PNG's eXIf), otherwise in XMP.

    A value out of range counts as not stated, and so does damaged EXIF: the pixels may be intact.
    """
    try:
        stated = image.getexif().get(_ORIENTATION)
    except BROKEN:
        stated = None
    if stated == 1 or stated in UPRIGHT:
        return int(stated)
    # Pillow turns a TIFF itself, by what getexif() tells; a second rule would turn some twice.
    if image.format == "TIFF":
        return 1
    xmp = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b""
    found = _XMP.search(xmp.encode() if isinstance(xmp, str) else xmp)
    return int(found[1]) if found else 1


def upright_size(image: Image.Image, turned: int) -> tuple[int, int]:
    """(height, width) of an image whose pixels are not decoded yet, when it is upright.

    Args:
        image: as opened.
        turned: its orientation.
    """
    width, height = image.size
    # Whether the size of a TIFF is that of the upright image depends on Pillow's version; the tags do not.
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        width, height = tags[_WIDTH], tags[_HEIGHT]
    return (width, height) if turned in SIDEWAYS else (height, width)


def upright_rgb(image: Image.Image, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an opened image as 8-bit RGB, upright, with nothing beside the pixels.

    Orientation: `orientation`; JPEG 2000 has none. Depth: the high byte of 16 bits, the upper 8 of 12 bits.
    Transparency, by an alpha channel, a palette or a transparent colour, also of grey: laid over white. CMYK,
    palettes and grey: as Pillow converts them. Colour profiles are not applied.

    Args:
        image: as `PIL.Image.open` returns it, or made in memory.
        max_pixels: width × height that is decoded.

    Raises:
        ImageError: as `check_header`, or a transparent colour of 16 bits.
        Exception: one of `BROKEN`, if the file is damaged.
    """
    check_header(image, max_pixels)
    # Before anything decodes the image and with it forgets how the pixels are packed.
    packing = _packing(image)
    image.load()
    # Pillow has turned a TIFF while it decoded it.
    turned = 1 if image.format == "TIFF" else orientation(image)
    rgb = _rgb(image, packing)
    upright = rgb.transpose(UPRIGHT[turned]) if turned in UPRIGHT else rgb
    # What is left in EXIF or as a transparent colour would be applied once more by whoever reads the result.
    upright.info = {}
    return upright


def _packing(image: Image.Image) -> str:
    """How the file packs the pixels, in Pillow's words (``L;2``); empty if the pixels are decoded."""
    tile = getattr(image, "tile", None)
    if not tile:
        return ""
    args = tile[0][3]
    return str(args[0] if isinstance(args, tuple) and args else args)


def _rgb(image: Image.Image, packing: str) -> Image.Image:
    if image.mode.startswith("I"):
        return _of_deep_grey(image)
    key = image.info.get("transparency")
    if image.mode in ("1", "L") and isinstance(key, int):
        grey = image.convert("L")
        clear = np.asarray(grey) == key * _KEY_SCALES.get(packing, 1)
        return Image.fromarray(np.where(clear, np.uint8(255), np.asarray(grey))).convert("RGB")
    if image.mode == "RGB" and isinstance(key, tuple):
        if packing.startswith("RGB;16") or max(key) > 255:
            # Pillow keeps the high bytes alone, which many colours share with the transparent one.
            raise ImageError(Problem.UNSUPPORTED, "a transparent colour of 16 bits")
        pixels = np.array(image)
        pixels[(pixels == np.array(key, np.uint8)).all(-1)] = 255
        return Image.fromarray(pixels)
    if image.has_transparency_data:
        # Pillow converts premultiplied grey to grey with alpha only.
        layer = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def _of_deep_grey(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.uint16)
    bits, inverted = 16, False
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        bits = int(np.ravel(tags.get(_BITS, 16))[0])
        # Pillow inverts white-is-zero up to 8 bits only.
        inverted = tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    grey = (values >> max(0, bits - 8)).astype(np.uint8)
    if inverted:
        grey = 255 - grey
    key = image.info.get("transparency")
    if isinstance(key, int):
        grey = np.where(values == key, np.uint8(255), grey)
    return Image.fromarray(grey).convert("RGB")
