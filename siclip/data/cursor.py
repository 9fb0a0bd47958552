"""The position of a run in its data: saved in a checkpoint and compared before a run resumes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, ValidationError

from siclip.config import Config
from siclip.errors import UserError


class Cursor(Config):
    """A position in the stream of samples, and what determines the stream.

    Attributes:
        seed: of the order.
        epoch: passes completed over the (first) dataset.
        position: samples delivered since the start.
        datasets: manifest hashes of all datasets that are read.
        order: hash of everything else that determines the sample, caption and pixels at a position.
    """

    seed: int
    epoch: int = Field(ge=0)
    position: int = Field(ge=0)
    datasets: tuple[str, ...]
    order: str


def check_cursor(saved: Mapping[str, Any], now: Cursor, where: str = "the checkpoint") -> None:
    """Check that a stream can resume at a saved cursor.

    Args:
        saved: the saved cursor.
        now: a cursor of the stream that is to resume.
        where: names the origin of ``saved`` in the message.

    Raises:
        UserError: the datasets or the order of the samples differ; the message names both values.
    """
    try:
        cursor = Cursor.model_validate(saved)
    except ValidationError as error:
        raise UserError(f"{where} has no readable data cursor ({error.errors()[0]['msg']})") from None
    if cursor.datasets != now.datasets:
        raise UserError(
            f"{where} was trained on a dataset with manifest hash {' + '.join(cursor.datasets)}, but the recipe's "
            f"data now has {' + '.join(now.datasets)}, so it is unknown which samples were seen. Resume with the "
            "original dataset, or start a new run in another folder (the checkpoint can be its teacher)"
        )
    if (cursor.seed, cursor.order) != (now.seed, now.order):
        raise UserError(
            f"{where} was trained with the samples in another order (seed {cursor.seed}, order {cursor.order}) than "
            f"the recipe gives now (seed {now.seed}, order {now.order}): restore the recipe's data section and seed, "
            "or start a new run in another folder"
        )
