"""Checkpoints at any path. Separate from the package's `__init__`, because it imports torch."""

from __future__ import annotations

from siclip.checkpoints.formats import load_model
from siclip.models.clip import Clip
from siclip_platform.storage import AnyPath, local_copy


def read_model(named: str | AnyPath) -> Clip:
    """Load the model of a siclip checkpoint from a path or URI.

    Raises:
        UserError: as `siclip.checkpoints.formats.load_model`, or the store does not answer.
    """
    with local_copy(named) as path:
        return load_model(path)
