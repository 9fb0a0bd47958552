"""Training from stored trunk features equals training from images up to bf16 rounding; the trunk runs once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from siclip.errors import UserError
from siclip.training.loop import Save
from siclip_platform.recipes.digits import digits_student
from siclip_platform.recipes.recipe import Recipe
from siclip_platform.training.in_process import run_recipe
from tests.support.open_clip_parts import TAG, nano_behind_the_tag


class Losses:
    def __init__(self) -> None:
        self.values: list[float] = []

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if "train/loss" in metrics:
            self.values.append(metrics["train/loss"])

    def milestone(self, step: int, metrics: Mapping[str, float], save: Save | None) -> None: ...


@pytest.fixture
def recipe(digits: Path, nano_teacher: Path) -> Recipe:
    base = digits_student(digits, nano_teacher, steps=6)
    return base.updated({"training.batch_size": 32, "training.log_every": 1, "training.evaluate_every": 0})


def losses(recipe: Recipe) -> list[float]:
    record = Losses()
    run_recipe(recipe, record)
    return record.values


def test_a_run_from_the_cache_has_the_losses_of_one_from_images(recipe: Recipe, tmp_path: Path) -> None:
    from_images = losses(recipe)
    from_cache = losses(recipe.updated({"data.trunk_cache": str(tmp_path)}))
    assert len(from_images) == 6 and from_cache != from_images
    assert from_cache[0] == pytest.approx(from_images[0], rel=0.02)
    assert from_cache == pytest.approx(from_images, rel=0.1)  # Adam's first steps amplify rounding differences


def test_a_student_of_mobileclip2_trains_from_the_cache(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its base comes by open_clip's tag, and both trunks are shared: the cache has no images for the teacher."""
    nano_behind_the_tag(tmp_path, monkeypatch)
    own_patterns = {"model.image_sharing": None, "model.text_sharing": None}
    second = recipe.updated({"model.name": "siclip2-nano", "teacher": TAG, "training.steps": 3, **own_patterns})
    from_images, from_cache = losses(second), losses(second.updated({"data.trunk_cache": str(tmp_path)}))
    assert len(from_images) == 3 and from_cache != from_images
    assert from_cache == pytest.approx(from_images, rel=0.1)


def test_a_second_run_reuses_the_cache_of_the_first(recipe: Recipe, tmp_path: Path) -> None:
    cached = recipe.updated({"data.trunk_cache": str(tmp_path)})
    first = losses(cached)
    (folder,) = tmp_path.glob("trunk-*")
    written = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert losses(cached) == first
    other = cached.updated({"loss.feature_distillation": 300.0, "model.text_sharing": "none"})
    assert losses(other) != first
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == written


@pytest.mark.parametrize(
    "change",
    [
        {"model.freeze": "none"},
        {"training.thaw_step": 2},
        {"model.inherit": False},
        {"model.block_regression_steps": 2},
    ],
)
def test_a_trunk_that_trains_is_refused(recipe: Recipe, tmp_path: Path, change: dict[str, object]) -> None:
    with pytest.raises(UserError, match="stores outputs of a trunk that never trains"):
        recipe.updated({"data.trunk_cache": str(tmp_path), **change})


def test_crops_need_a_cache(recipe: Recipe) -> None:
    with pytest.raises(UserError, match=r"set data\.trunk_cache"):
        recipe.updated({"data.augmentations": 3})


def test_crops_differ_from_the_plain_image(recipe: Recipe, tmp_path: Path) -> None:
    plain = losses(recipe.updated({"data.trunk_cache": str(tmp_path)}))
    crops = losses(recipe.updated({"data.trunk_cache": str(tmp_path), "data.augmentations": 2}))
    assert crops != plain and len(list(tmp_path.glob("trunk-*"))) == 2
