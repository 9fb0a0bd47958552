from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resized_crop

from siclip.data.crops import chosen_crop, replay_crop, seeded_boxes

sides = st.integers(1, 300)


@given(height=sides, width=sides, scale=st.floats(0.05, 1), seed=st.integers(0, 2**31), count=st.integers(1, 4))
def test_boxes_lie_in_the_image_and_follow_from_their_key(
    height: int, width: int, scale: float, seed: int, count: int
) -> None:
    boxes = seeded_boxes(height, width, count, scale, seed, "a")
    assert boxes.shape == (count, 4) and boxes.dtype == np.int32
    top, left, high, wide = boxes.T
    assert (top >= 0).all() and (left >= 0).all() and (high > 0).all() and (wide > 0).all()
    assert (top + high <= height).all() and (left + wide <= width).all()
    assert (boxes == seeded_boxes(height, width, count, scale, seed, "a")).all()
    more = seeded_boxes(height, width, count + 1, scale, seed, "a")
    assert (more[:count] == boxes).all()


def test_boxes_keep_the_share_of_the_area_and_differ() -> None:
    boxes = seeded_boxes(200, 200, 300, 0.5, 0, "a")
    share = boxes[:, 2] * boxes[:, 3] / 40_000
    assert 0.49 < share.min() < 0.55 and 0.9 < share.max() <= 1
    assert len(np.unique(boxes, axis=0)) > 250
    assert not (boxes == seeded_boxes(200, 200, 300, 0.5, 0, "b")).all()
    assert not (boxes == seeded_boxes(200, 200, 300, 0.5, 1, "a")).all()


@pytest.mark.parametrize(("height", "width", "box"), [(30, 50, (0, 10, 30, 30)), (50, 31, (9, 0, 31, 31))])
def test_scale_1_is_the_centred_square(height: int, width: int, box: tuple[int, ...]) -> None:
    assert seeded_boxes(height, width, 2, 1, 0, "a").tolist() == [list(box)] * 2


@pytest.mark.parametrize("size", [24, (16, 40)])
def test_a_replayed_crop_is_torchvisions(size: int | tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    to = [size, size] if isinstance(size, int) else list(size)
    for box in seeded_boxes(60, 80, 5, 0.3, 0, "a"):
        expected = resized_crop(Image.fromarray(pixels), *map(int, box), to, InterpolationMode.BILINEAR)
        assert np.array_equal(replay_crop(pixels, box, size), np.asarray(expected))


def test_every_crop_is_chosen_in_some_epoch() -> None:
    chosen = [chosen_crop(0, epoch, "a", 4) for epoch in range(100)]
    assert set(chosen) == {0, 1, 2, 3} and chosen == [chosen_crop(0, epoch, "a", 4) for epoch in range(100)]
