from __future__ import annotations

import numpy as np
import pytest
import torch
from open_clip.transform import image_transform
from PIL import Image
from torchvision.transforms import functional as TF

import siclip
from siclip.data.transforms import fit_image


def photo(width: int, height: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


SIZES = [(300, 400), (401, 333), (256, 256), (257, 600), (90, 61), (1, 5)]


@pytest.mark.parametrize("size", SIZES)
def test_evaluation_equals_open_clips_transform_for_mobileclip(size: tuple[int, int]) -> None:
    theirs = image_transform(256, is_train=False, mean=(0, 0, 0), std=(1, 1, 1), interpolation="bilinear")
    image = photo(*size)
    assert torch.equal(siclip.preprocess(train=False)(image), theirs(image))


@pytest.mark.parametrize("size", SIZES)
def test_fit_image_gives_the_same_pixels(size: tuple[int, int]) -> None:
    image = photo(*size)
    fitted = torch.from_numpy(fit_image(np.asarray(image), 64).copy()).permute(2, 0, 1) / 255
    assert torch.equal(fitted, siclip.preprocess(train=False, size=64)(image))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_other_modes_become_rgb(mode: str) -> None:
    image = photo(70, 64, mode)
    expected = TF.to_tensor(TF.center_crop(image.convert("RGB"), [64, 64]))
    assert torch.equal(siclip.preprocess(train=False, size=64)(image), expected)


def test_training_crops_differ_and_follow_torchs_seed() -> None:
    image, transform = photo(300, 280), siclip.preprocess(train=True, size=64)
    torch.manual_seed(0)
    first, second = transform(image), transform(image)
    torch.manual_seed(0)
    assert first.shape == (3, 64, 64) and first.min() >= 0 and first.max() <= 1
    assert torch.equal(first, transform(image)) and not torch.equal(first, second)


def test_training_keeps_left_and_right() -> None:
    pixels = np.zeros((100, 100, 3), dtype=np.uint8)
    pixels[:, :50] = 255
    transform = siclip.preprocess(train=True, size=32)
    crops = [transform(Image.fromarray(pixels)) for _ in range(20)]
    assert all(crop[:, :, 4].mean() > 0.9 and crop[:, :, -4].mean() < 0.1 for crop in crops)
