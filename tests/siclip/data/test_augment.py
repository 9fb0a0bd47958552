from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandAugment, RandomResizedCrop, autoaugment
from torchvision.transforms import functional as TF

from siclip.data import augment
from siclip.data.augment import apply, crop_box, load_pixels, magnitude
from siclip.data.config import AugmentConfig
from siclip.data.images import decode_image
from siclip.data.transforms import fit_image

SIZE = 48


def photo(width: int = 90, height: int = 70) -> Image.Image:
    """A smooth image with an edge, which JPEG preserves well."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    waves = np.stack([np.sin(x / 9) + np.cos(y / 7), np.sin(y / 11), (x > y).astype(float)], axis=2)
    return Image.fromarray(np.uint8(255 * (waves - waves.min()) / np.ptp(waves)))


def encoded(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95)
    return file.getvalue()


def loaded(key: int = 0, data: bytes | None = None, scaled: bool = False, **config: object) -> np.ndarray:
    return load_pixels(data or encoded(photo()), "a photo", SIZE, AugmentConfig(**config), (0, key), scaled=scaled)


CHANGES = [
    {"crop_scale": 0.3},
    {"jitter": 0.4},
    {"hue": 0.3},
    {"rand_augment": 2},
    {"crop_scale": 0.5, "jitter": 0.4, "hue": 0.1, "rand_augment": 2, "rand_augment_magnitude": 15},
]


def test_without_augmentation_pixels_are_those_of_evaluation() -> None:
    assert np.array_equal(loaded(), fit_image(decode_image(encoded(photo())), SIZE))
    assert AugmentConfig(rand_augment_magnitude=3).is_off
    assert not any(AugmentConfig(**config).is_off for config in CHANGES)


@pytest.mark.parametrize("config", CHANGES)
def test_only_the_key_determines_the_augmentation(config: dict[str, float]) -> None:
    torch.manual_seed(0)
    first = [loaded(key, **config) for key in range(8)]
    torch.manual_seed(1)
    np.random.seed(2)
    assert all(np.array_equal(loaded(key, **config), image) for key, image in enumerate(first))
    assert all(image.shape == (SIZE, SIZE, 3) and image.dtype == np.uint8 for image in first)
    assert len({image.tobytes() for image in first}) > 4
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    loaded(0, **config)
    assert torch.equal(torch.rand(1), expected)


def test_crops_are_drawn_as_torchvision_draws_them() -> None:
    """The same shape, and the same distribution of area, aspect ratio and position, each to 5 % of its spread."""
    generator = np.random.default_rng(0)
    torch.manual_seed(0)
    image = photo(80, 60)
    ours = np.array([crop_box(60, 80, 0.3, generator) for _ in range(4000)])
    theirs = np.array([RandomResizedCrop.get_params(image, [0.3, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)])
    ours_boxes, their_boxes = ours, theirs
    for figure in (
        lambda box: box[:, 2] * box[:, 3],
        lambda box: box[:, 3] / box[:, 2],
        lambda box: box[:, 0],
        lambda box: box[:, 1],
    ):
        a, b = figure(ours_boxes), figure(their_boxes)
        assert abs(a.mean() - b.mean()) < 0.1 * b.std()
        assert abs(a.std() - b.std()) < 0.1 * b.std()


@pytest.mark.parametrize("shape", [(10, 400), (400, 10), (1, 1)])
def test_crops_of_extreme_images_lie_inside(shape: tuple[int, int]) -> None:
    for seed in range(20):
        top, left, height, width = crop_box(*shape, 0.9, np.random.default_rng(seed))
        assert min(top, left) >= 0 and top + height <= shape[0] and left + width <= shape[1]
        assert height > 0 and width > 0


@pytest.mark.parametrize("level", [0, 9, 30])
def test_every_operation_is_torchvisions(level: int) -> None:
    image = photo(SIZE, SIZE)
    space = RandAugment()._augmentation_space(31, (SIZE, SIZE))
    assert set(space) == set(augment.OPERATIONS)
    for name, (values, signed) in space.items():
        expected = float(values[level]) if values.ndim else 0.0
        value, has_sign = magnitude(name, level, SIZE)
        assert value == pytest.approx(expected, rel=1e-6) and has_sign == signed
        for sign in (1, -1) if signed else (1,):
            theirs = autoaugment._apply_op(
                image, name, sign * expected, interpolation=TF.InterpolationMode.NEAREST, fill=None
            )
            assert np.array_equal(np.asarray(apply(image, name, sign * expected)), np.asarray(theirs))


def test_a_scaled_decode_differs_a_little_and_only_where_it_halves() -> None:
    for width, height in ((400, 300), (300, 400), (97, 200)):
        data = encoded(photo(width, height))
        whole, scaled = loaded(data=data), loaded(data=data, scaled=True)
        assert not np.array_equal(whole, scaled) and decode_image(data, at_least=SIZE).shape[0] <= height / 2
        assert np.corrcoef(whole.ravel(), scaled.ravel())[0, 1] > 0.99
        shifted = np.roll(whole, 1, axis=1)
        assert np.corrcoef(shifted.ravel(), scaled.ravel())[0, 1] < np.corrcoef(whole.ravel(), scaled.ravel())[0, 1]
    small = encoded(photo(95, 120))
    assert np.array_equal(loaded(data=small), loaded(data=small, scaled=True))


def test_a_crop_from_a_scaled_decode_shows_the_same_part() -> None:
    data = encoded(photo(600, 500))
    assert decode_image(data, at_least=100).shape[0] < 300
    for key in range(6):
        whole, scaled = (loaded(key, data, scaled, crop_scale=0.5) for scaled in (False, True))
        assert np.corrcoef(whole.ravel(), scaled.ravel())[0, 1] > 0.99
