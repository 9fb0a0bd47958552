"""Where a run stands in its data: what a checkpoint holds, and what is compared before a run goes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, ValidationError

from siclip.config import Config
from siclip.errors import UserError


class Cursor(Config):
    """``position`` samples were delivered since the start, in the ``epoch``-th pass over the (first) dataset.

    ``datasets``: hashes of the manifests of everything that is read. ``order``: hash of what else decides which
    sample, caption and pixels stand at a position.
    """

    seed: int
    epoch: int = Field(ge=0)
    position: int = Field(ge=0)
    datasets: tuple[str, ...]
    order: str


def check_cursor(saved: Mapping[str, Any], now: Cursor, place: str = "the checkpoint") -> None:
    """Whether a stream goes on where the saved cursor stands.

    Raises:
        UserError: the data is other data, or comes in another order; the message says which.
    """
    try:
        cursor = Cursor.model_validate(saved)
    except ValidationError as error:
        raise UserError(f"{place} holds no cursor that can be read ({error.errors()[0]['msg']})") from None
    if cursor.datasets != now.datasets:
        raise UserError(
            f"{place} was trained on a dataset with manifest hash {' + '.join(cursor.datasets)}, the recipe's data "
            f"now has {' + '.join(now.datasets)}: what was seen and what is left cannot be told. Go on with the "
            "dataset as it was, or start anew in another folder (the checkpoint can be the new run's teacher)"
        )
    if (cursor.seed, cursor.order) != (now.seed, now.order):
        raise UserError(
            f"{place} was trained with its samples in another order (seed {cursor.seed}, order {cursor.order}) than "
            f"the recipe now gives (seed {now.seed}, order {now.order}): set the recipe's data section and seed as "
            "they were, or start anew in another folder"
        )
