"""No trial may silently train the same thing: every searched parameter changes what is computed."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch

from siclip.config import MiningStrategy
from siclip_platform.recipes.presets import digits_student
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
    torch.set_num_threads(1)
    """Of few steps, so that what changes over the training (the miner ``annealed``) changes within three."""
    return digits_student(digits, nano_teacher, steps=4).updated({"training.batch_size": 16, **ON})


@pytest.fixture(scope="module")
def seen(base: Recipe) -> tuple[int, list[float]]:
    return fingerprint(base)


def test_the_same_recipe_computes_the_same(base: Recipe, seen: tuple[int, list[float]]) -> None:
    assert fingerprint(base) == seen


SEARCHED = {path: SPACE.sample_values(path) for path in SPACE.paths} | {"loss.negatives": get_args(MiningStrategy)}


@pytest.mark.parametrize("path", SEARCHED)
def test_every_value_of_a_searched_parameter_computes_something_else(
    path: str, base: Recipe, seen: tuple[int, list[float]]
) -> None:
    """Of the miners all that there are, not those of this space alone."""
    values = [v for v in SEARCHED[path] if v != base.flat()[path]]
    found = [fingerprint(base.updated({path: value})) for value in values]
    assert values
    for one, other in zip(found, [*found[1:], seen], strict=True):
        assert one != other
    assert len({str(f) for f in found}) == len(values)
