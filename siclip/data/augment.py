"""Random crops and image augmentations, determined by a key: a sample looks the same on every worker."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from siclip.data.captions import stable_id
from siclip.data.config import MAGNITUDES, AugmentConfig
from siclip.data.images import decode_image, image_size
from siclip.data.transforms import fit_image

Pixels = npt.NDArray[np.uint8]
Box = tuple[int, int, int, int]
"""(top, left, height, width) in pixels"""

# Aspect ratios of a random crop: torchvision's default.
RATIO = (3 / 4, 4 / 3)


def load_pixels(
    data: Any, where: str, size: int, config: AugmentConfig, key: tuple[object, ...], *, scaled: bool = False
) -> Pixels:
    """Encoded image → (size, size, 3) uint8, augmented.

    Args:
        data: the encoded image.
        where: its location, for the error message.
        size: height and width of the result in pixels.
        config: the augmentations.
        key: determines every random choice, for example (seed, epoch, sample id).
        scaled: decode a JPEG at a lower scale if the part that is used is at least twice the size.

    Raises:
        UserError: the bytes cannot be decoded; the message includes ``where``.
    """
    if config.is_off:
        return fit_image(decode_image(data, where, at_least=size if scaled else 0), size)
    generator = np.random.default_rng(stable_id("/".join(map(str, ("augment", *key)))))
    if config.crop_scale < 1:
        box = crop_box(*image_size(data, where), config.crop_scale, generator)
        pixels = load_crop(data, where, size, box, scaled=scaled)
    else:
        pixels = fit_image(decode_image(data, where, at_least=size if scaled else 0), size)
    return np.asarray(_changed(Image.fromarray(pixels), config, generator))


def load_crop(data: Any, where: str, size: int, box: Box, *, scaled: bool = False) -> Pixels:
    """Crop an encoded image and resize the crop (bilinear, antialiased): (size, size, 3) uint8.

    Args:
        data: the encoded image.
        where: its location, for the error message.
        size: height and width of the result in pixels.
        box: the crop in pixels of the whole image.
        scaled: as in `load_pixels`.

    Raises:
        UserError: as `load_pixels`.
    """
    height, width = image_size(data, where)
    at_least = -(-min(height, width) * size // min(box[2:])) if scaled else 0
    pixels = decode_image(data, where, at_least=at_least)
    top, left, high, wide = box
    if pixels.shape[0] == height:
        cut = pixels[top : top + high, left : left + wide]
        if cut.shape[:2] == (size, size):
            return cut
        return np.asarray(Image.fromarray(cut).resize((size, size), Image.Resampling.BILINEAR))
    # libjpeg scales by eighths and rounds the sides up, so the quotient of the heights is only close to the scale.
    ratio = round(8 * pixels.shape[0] / height) / 8
    edges = (left * ratio, top * ratio, (left + wide) * ratio, (top + high) * ratio)
    return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR, box=edges))


def crop_box(height: int, width: int, scale: float, generator: np.random.Generator) -> Box:
    """A random crop with between ``scale`` and all of the area and an aspect ratio within `RATIO`.

    The algorithm is that of torchvision's RandomResizedCrop, including the centre crop after ten failed attempts.
    """
    for _ in range(10):
        area = height * width * generator.uniform(scale, 1.0)
        ratio = math.exp(generator.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < high <= height:
            top, left = generator.integers(height - high + 1), generator.integers(width - wide + 1)
            return int(top), int(left), high, wide
    ratio = width / height
    wide = min(width, max(1, round(height * RATIO[1]))) if ratio > RATIO[1] else width
    high = min(height, max(1, round(width / RATIO[0]))) if ratio < RATIO[0] else height
    return (height - high) // 2, (width - wide) // 2, high, wide


def _changed(image: Image.Image, config: AugmentConfig, generator: np.random.Generator) -> Image.Image:
    """Colour jitter in a random order, then RandAugment."""
    if config.jitter or config.hue:
        for which in generator.permutation(4):
            factor, turn = 1 + config.jitter * generator.uniform(-1, 1), config.hue * generator.uniform(-1, 1)
            image = apply(image, "Hue", turn) if which == 3 else apply(image, _COLOURS[which], factor - 1)
    for _ in range(config.rand_augment):
        name = OPERATIONS[generator.integers(len(OPERATIONS))]
        level, signed = magnitude(name, config.rand_augment_magnitude, image.size[0])
        flip = generator.random() < 0.5
        image = apply(image, name, -level if signed and flip else level)
    return image


_COLOURS = ("Brightness", "Contrast", "Color")
# Largest magnitudes as in torchvision's RandAugment; translations are relative to the side (150 of 331 pixels).
_SIGNED = {"ShearX": 0.3, "ShearY": 0.3, "TranslateX": 150 / 331, "TranslateY": 150 / 331, "Rotate": 30.0}
_SIGNED |= dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), 0.9)
OPERATIONS = ("Identity", *_SIGNED, "Posterize", "Solarize", "AutoContrast", "Equalize")
"""RandAugment's, in the order of torchvision, by which stored operations are numbered."""
Operation = tuple[str, float]
"""(name, magnitude); the magnitude of a translation is a share of the side."""


def replay_operations(pixels: Pixels, operations: Sequence[Operation]) -> Pixels:
    """Apply stored operations of RandAugment to a square image, one after the other."""
    image = Image.fromarray(pixels)
    for name, value in operations:
        image = apply(image, name, value * image.size[0] if name.startswith("Translate") else value)
    return np.asarray(image)


def magnitude(name: str, level: int, size: int) -> tuple[float, bool]:
    """The magnitude of a RandAugment operation, and whether its sign is random.

    Args:
        name: the operation, named as in torchvision.
        level: from 0 to `MAGNITUDES` − 1.
        size: side of the image in pixels.
    """
    share = level / (MAGNITUDES - 1)
    if name in _SIGNED:
        return _SIGNED[name] * share * (size if name.startswith("Translate") else 1), True
    return {"Posterize": float(8 - round(4 * share)), "Solarize": 255 * (1 - share)}.get(name, 0.0), False


def apply(image: Image.Image, name: str, value: float) -> Image.Image:
    """Apply one RandAugment operation, named as in torchvision, or ``Hue``."""
    changed: Image.Image = _operations()[name](image, value)
    return changed


@lru_cache(maxsize=1)
def _operations() -> dict[str, Any]:
    from torchvision.transforms import functional as F

    def affine(image: Any, shear: tuple[float, float] = (0, 0), move: tuple[int, int] = (0, 0)) -> Any:
        # torchvision's RandAugment shears about the top left corner, to match its paper's implementation.
        centre = [0, 0] if any(shear) else None
        return F.affine(image, angle=0, translate=list(move), scale=1, shear=list(shear), center=centre)

    def slope(value: float) -> float:
        return math.degrees(math.atan(value))

    return {
        "Identity": lambda image, value: image,
        "ShearX": lambda image, value: affine(image, shear=(slope(value), 0)),
        "ShearY": lambda image, value: affine(image, shear=(0, slope(value))),
        "TranslateX": lambda image, value: affine(image, move=(int(value), 0)),
        "TranslateY": lambda image, value: affine(image, move=(0, int(value))),
        "Rotate": F.rotate,
        "Brightness": lambda image, value: F.adjust_brightness(image, 1 + value),
        "Color": lambda image, value: F.adjust_saturation(image, 1 + value),
        "Contrast": lambda image, value: F.adjust_contrast(image, 1 + value),
        "Sharpness": lambda image, value: F.adjust_sharpness(image, 1 + value),
        "Hue": F.adjust_hue,
        "Posterize": lambda image, value: F.posterize(image, int(value)),
        "Solarize": F.solarize,
        "AutoContrast": lambda image, value: F.autocontrast(image),
        "Equalize": lambda image, value: F.equalize(image),
    }
