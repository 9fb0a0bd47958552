"""How long a job is: the pairs of its dataset, and what its recipe makes of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from siclip_platform.datasets.epochs import samples_of_an_epoch, with_steps
from siclip_platform.plan.reference import AVAILABLE_PAIRS
from siclip_platform.recipes.here import is_here
from siclip_platform.recipes.load import is_shipped
from siclip_platform.recipes.recipe import Recipe

CC12M = (
    "those of CC12M that could still be downloaded in October 2025 (google-research-datasets/conceptual-12m, issue "
    "9); --pairs names yours"
)


@dataclass(frozen=True)
class Length:
    """The length of a job.

    Attributes:
        recipe: with its steps.
        pairs: of the dataset.
        epochs: passes over all of them.
        source: where the number of pairs is from; empty: it was given.
    """

    recipe: Recipe
    pairs: int
    epochs: float
    source: str


def job_length(recipe: Recipe, name: str, pairs: int | None = None, epochs: float | None = None) -> Length:
    """Count the steps of a job, or the epochs of one whose recipe names steps.

    Args:
        recipe: of the training.
        name: by which it was loaded. A shipped recipe names a dataset that is not its reader's.
        pairs: of the dataset; None: those of the recipe's own dataset if it is here, else of `AVAILABLE_PAIRS`.
        epochs: instead of the recipe's length.

    Raises:
        UserError: the dataset that is here cannot be read, or what the recipe names in steps is not within so few.
    """
    if epochs is not None:
        recipe = recipe.updated({"training.epochs": epochs})
    count, source = pairs, ""
    if count is None and not is_shipped(name) and is_here(recipe.data.path):
        # what is mixed in counts as it is drawn: an epoch of all together
        whole = recipe.model_copy(update={"data": recipe.data.model_copy(update={"limit": 0})})
        count, source = math.ceil(samples_of_an_epoch(whole)), f"the split train of {recipe.data.path}"
    elif count is None:
        count, source = AVAILABLE_PAIRS, CC12M
    passed = min(recipe.data.limit or count, count)
    counted = with_steps(recipe, passed)
    if recipe.training.epochs:
        return Length(counted, count, recipe.training.epochs * passed / count, source)
    return Length(counted, count, recipe.training.steps * recipe.training.batch_size / count, source)
