"""Every searched parameter changes what is computed: no two settings may train the same thing."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch

from siclip.config import MiningStrategy
from siclip_platform.recipes.digits import digits_student
from siclip_platform.recipes.recipe import Recipe
from siclip_platform.spaces import load_space
from siclip_platform.stream import Stream, thread_batches
from siclip_platform.training.build import build_trainer

SPACE = load_space("wikd")
ON = {"loss.pair_matching": 0.3}


def fingerprint(recipe: Recipe) -> tuple[int, list[float]]:
    """Number of trained parameters, and the loss of each of three steps."""
    trainer = build_trainer(recipe)
    stream = Stream.of(recipe, trainer.model.config)
    size = recipe.training.batch_size
    losses = [float(trainer.train_step(batch)["loss"]) for batch in thread_batches(stream, size, 0, 3 * size)]
    groups = trainer.optimizer.param_groups
    return sum(p.numel() for group in groups for p in group["params"]), losses


@pytest.fixture(scope="module")
def base(digits: Path, nano_teacher: Path) -> Recipe:
    """A recipe of few steps: the miner ``annealed`` changes over the training, and so within three steps."""
    torch.set_num_threads(1)
    return digits_student(digits, nano_teacher, steps=4).updated({"training.batch_size": 16, **ON})


@pytest.fixture(scope="module")
def base_fingerprint(base: Recipe) -> tuple[int, list[float]]:
    return fingerprint(base)


def test_the_same_recipe_computes_the_same(base: Recipe, base_fingerprint: tuple[int, list[float]]) -> None:
    assert fingerprint(base) == base_fingerprint


SEARCHED = {parameter.path: parameter.sample_values for parameter in SPACE.parameters} | {
    "loss.negatives": get_args(MiningStrategy)  # all of the library's, not those of this space alone
}


@pytest.mark.parametrize("path", SEARCHED)
def test_every_value_of_a_searched_parameter_changes_the_training(
    path: str, base: Recipe, base_fingerprint: tuple[int, list[float]]
) -> None:
    values = [value for value in SEARCHED[path] if value != base.flat()[path]]
    fingerprints = [fingerprint(base.updated({path: value})) for value in values]
    assert values
    assert len({str(one) for one in [*fingerprints, base_fingerprint]}) == len(values) + 1
