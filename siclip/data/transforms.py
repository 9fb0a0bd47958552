"""MobileCLIP's preprocessing: shorter side to the size (bilinear), centre crop, values in [0, 1], mean 0, std 1."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from siclip.data.pillow_images import upright_rgb
from siclip.errors import UserError

if TYPE_CHECKING:
    # decoding needs no torch, which takes seconds to import
    from torch import Tensor

TRAIN_SCALE = (0.9, 1.0)
"""Share of the area that a training crop keeps: open_clip's default."""
PREPROCESSING: Mapping[str, Any] = {
    "mode": "RGB",
    "mean": [0.0, 0.0, 0.0],
    "std": [1.0, 1.0, 1.0],
    "interpolation": "bilinear",
    "resize_mode": "shortest",
}
"""What every model here expects, in the terms of open_clip's configs."""


def preprocess(train: bool, size: int = 256) -> Callable[[Image.Image], Tensor]:
    """The transform of a Pillow image of any size and mode to (3, size, size), fp32 in [0, 1].

    For evaluation, as in the reference: shorter side to ``size`` (bilinear), centre crop. For training: a random crop
    of 90 to 100 % of the area at an aspect ratio of 3:4 to 4:3, drawn from torch's global generator; no flip, because
    captions mention left and right. Values are not normalised by a mean and standard deviation.

    The image is read as every other reader does, see `siclip.data.pillow_images.upright_rgb`: turned upright by what
    its EXIF or XMP states, transparency over white, 16 bits scaled to 8. The transform raises `ImageError`, a
    `UserError`, for one that is too large, animated or of a depth without a fixed range.

    Args:
        train: for training instead of evaluation.
        size: height and width of the result in pixels.
    """
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, RandomResizedCrop, Resize, ToTensor

    bilinear = InterpolationMode.BILINEAR
    fit: list[Any] = [RandomResizedCrop(size, scale=TRAIN_SCALE, interpolation=bilinear)]
    if not train:
        fit = [Resize(size, interpolation=bilinear), CenterCrop(size)]
    transform: Callable[[Image.Image], Tensor] = Compose([upright_rgb, *fit, ToTensor()])
    return transform


def preprocessing_text(size: int) -> str:
    """`PREPROCESSING` in words, for a model of this image size."""
    return f"shorter side to {size} px (bilinear), centre crop, values in [0, 1], mean 0, standard deviation 1"


def check_preprocessing(card: Mapping[str, Any], where: str) -> None:
    """Check that weights expect their images as every model here does.

    Args:
        card: the preprocessing in the terms of open_clip's configs; open_clip's defaults fill what it omits. The size
            is not compared: it is the model's.
        where: names the card in the message.

    Raises:
        UserError: they expect something else.
    """
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    found = merge_preprocess_dict(PreprocessCfg(), dict(card))
    found |= {name: list(found[name]) for name in ("mean", "std") if isinstance(found[name], tuple)}
    differences = [
        f"{name} {found[name]!r} instead of {ours!r}" for name, ours in PREPROCESSING.items() if found[name] != ours
    ]
    if differences:
        raise UserError(
            f"{where}: these weights expect images with {', '.join(differences)}, but every model here takes "
            "MobileCLIP's; distil from them instead (distil_from), where each teacher prepares images its own way"
        )


def fit_image(image: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    """(height, width, 3) uint8 → (size, size, 3) uint8: `preprocess` for evaluation, before the division by 255.

    An image that already has the size is returned unchanged. Sizes and offsets are rounded as in torchvision, so that
    both give the same pixels.
    """
    height, width = image.shape[:2]
    if (height, width) == (size, size):
        return image
    short = min(height, width)
    fitted = (int(size * width / short), int(size * height / short))
    resized = np.asarray(Image.fromarray(image).resize(fitted, Image.Resampling.BILINEAR))
    top, left = round((resized.shape[0] - size) / 2), round((resized.shape[1] - size) / 2)
    return resized[top : top + size, left : left + size]
