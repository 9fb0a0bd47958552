"""Checkpoints by path or URI."""

from __future__ import annotations

from siclip.checkpoints.formats import load_model
from siclip.models.clip import Clip
from siclip_platform.storage import AnyPath, fetched


def read_model(named: str | AnyPath) -> Clip:
    """The model of a checkpoint of ours, wherever it lies.

    Raises:
        UserError: as `siclip.checkpoints.formats.load_model`, or the store does not answer.
    """
    with fetched(named) as path:
        return load_model(path)
