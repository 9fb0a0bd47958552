"""How long an epoch of a recipe is, and how many steps its epochs are."""

from __future__ import annotations

from fractions import Fraction

from pydantic import ValidationError

from siclip.errors import UserError
from siclip_platform.datasets.manifest import Dataset, read_manifest
from siclip_platform.recipes.recipe import MixedDataset, Recipe
from siclip_platform.storage import as_path


def samples_of_an_epoch(recipe: Recipe) -> Fraction:
    """The samples in which ``data.path`` is passed once; with datasets mixed in they are more than its rows.

    Raises:
        UserError: a dataset cannot be read, or has no split ``train`` or fewer samples than its limit.
    """
    data = recipe.data
    parts = [MixedDataset(path=data.path, limit=data.limit), *data.mix]
    return sum((Fraction(str(part.weight)) * _rows(part) for part in parts), Fraction(0))


def _rows(part: MixedDataset) -> int:
    folder = as_path(part.path).absolute()
    rows = Dataset(folder, read_manifest(folder)).rows("train")
    if not rows:
        raise UserError(f"split 'train' of dataset {folder} has no samples: name a dataset that has some")
    if part.limit > rows:
        raise UserError(
            f"split 'train' of dataset {folder}: limit {part.limit} is above the {rows} samples of the dataset: "
            "lower it, or use 0 for all"
        )
    return part.limit or rows


def with_steps(recipe: Recipe, samples: int | Fraction | None = None) -> Recipe:
    """The recipe with ``training.steps`` instead of ``training.epochs``.

    Trainings, searches, ``--resume`` and ``plan`` call this once, before anything starts; what is recorded is the
    number of steps.

    Args:
        recipe: as it is if it has steps.
        samples: of an epoch; None: those of its data.

    Raises:
        UserError: see `samples_of_an_epoch`; or a step that the recipe names is not within so few steps.
    """
    if not recipe.training.epochs:
        return recipe
    samples = samples_of_an_epoch(recipe) if samples is None else samples
    said = f"training.epochs {recipe.training.epochs:g} of {float(samples):,.0f} samples"
    try:
        training = recipe.training.with_steps(samples)
    except ValidationError as error:
        raise UserError(f"{said}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
    try:
        return recipe.updated({"training.steps": training.steps})
    except UserError as error:
        raise UserError(f"{said} are {training.steps:,} steps: {error}") from None


def length(recipe: Recipe) -> str:
    """The length of a recipe whose steps are counted, for people: its steps, batch size, samples and epochs."""
    training, samples = recipe.training, samples_of_an_epoch(recipe)
    epochs = float(training.steps * training.batch_size / samples)
    return (
        f"{training.steps:,} steps of {training.batch_size:,} samples: {epochs:,.3g} epochs of "
        f"{float(samples):,.0f} samples"
    )
