"""Checkpoints at any path, or of open_clip. Separate from the package's `__init__`, because it imports torch."""

from __future__ import annotations

from siclip.checkpoints.formats import load_model
from siclip.checkpoints.open_clip_weights import OpenClipWeights
from siclip.models.clip import Clip
from siclip.open_clip_models import OPEN_CLIP
from siclip_platform.storage import AnyPath, local_copy


def read_model(named: str | AnyPath) -> Clip:
    """Load a model.

    Args:
        named: the path or URI of a siclip checkpoint, or ``open_clip:NAME:TAG`` of a model that has the structure of
            one of ours.

    Raises:
        UserError: as `siclip.checkpoints.formats.load_model` or `OpenClipWeights`, or the store does not answer.
    """
    if str(named).startswith(OPEN_CLIP):
        return OpenClipWeights.of(str(named)).load()
    with local_copy(named) as path:
        return load_model(path)
