"""Steps follow from epochs and the samples of a recipe's data."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from siclip.errors import UserError
from siclip.models import model_config
from siclip_platform.datasets.epochs import length, samples_of_an_epoch, with_steps
from siclip_platform.datasets.manifest import Manifest, open_dataset, write_manifest
from siclip_platform.recipes.digits import digits_student
from siclip_platform.recipes.recipe import Recipe
from siclip_platform.stream import Stream


def in_epochs(data: Path, epochs: float, **changes: object) -> Recipe:
    shares = {"training.epochs": epochs, "training.warmup_share": 0.1, "training.batch_size": 32}
    return digits_student(data).updated({**shares, **changes})


def test_steps_are_those_after_which_the_stream_has_passed_the_data_so_often(digits: Path) -> None:
    mix = [{"path": str(digits), "weight": 0.3, "limit": 100}]
    for changes in ({}, {"data.limit": 70}, {"data.mix": mix}, {"data.limit": 70, "data.mix": mix}):
        counted = with_steps(in_epochs(digits, 2.5, **changes)).training
        stream = Stream.of(in_epochs(digits, 2.5, **changes), model_config("siclip-nano"))
        rows = stream.sources[0].order.rows
        of_data_path = [stream.mixture.counts(steps * 32)[0] for steps in (counted.steps - 1, counted.steps)]
        assert of_data_path[0] < 2.5 * rows <= of_data_path[1], changes
        assert (counted.epochs, counted.warmup) == (0, round(0.1 * counted.steps))


def test_a_recipe_in_steps_is_not_counted_and_its_length_is_told(digits: Path, tmp_path: Path) -> None:
    recipe = digits_student(tmp_path / "no dataset")
    assert with_steps(recipe) is recipe
    rows = open_dataset(digits).rows("train")
    told = with_steps(in_epochs(digits, 3))
    assert length(told) == f"{math.ceil(3 * rows / 32)} steps of 32 samples: 3.07 epochs of 240 samples"
    assert samples_of_an_epoch(told) == rows == 240


def test_what_cannot_be_counted_is_refused(digits: Path, tmp_path: Path) -> None:
    manifest = json.loads((digits / "manifest.json").read_text())
    write_manifest(tmp_path, Manifest.model_validate(manifest | {"splits": {}}))
    thaw = {"training.thaw_step": 40}
    stage = {"loss.schedule": [{"step": 40, "weights": {"contrastive": 2.0}}]}
    for recipe, words in (
        (in_epochs(tmp_path, 2), rf"dataset {tmp_path} has no splits"),
        (in_epochs(digits, 2, **{"data.limit": 500}), "limit 500 is above the 240 samples"),
        (in_epochs(digits, 2, **thaw), r"epochs 2 of 240 samples: thaw_step 40 must be below the 15 steps"),
        (in_epochs(digits, 2, **stage), r"are 15 steps: .*loss.schedule.0: step 40 is not before training.steps 15"),
    ):
        with pytest.raises(UserError, match=f"(?s){words}"):
            with_steps(recipe)
