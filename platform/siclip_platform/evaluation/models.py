"""Open a model to measure: a siclip checkpoint, or any open_clip model by ``open_clip:NAME:TAG``."""

from __future__ import annotations

import torch

from siclip import open_clip_models
from siclip.errors import UserError
from siclip.evaluation.encoder import ClipEncoder, Encoder, OpenClipEncoder
from siclip.open_clip_models import OPEN_CLIP
from siclip_platform.storage.checkpoints import read_model


def open_model(model: str, device: torch.device) -> Encoder:
    """Open a model.

    Args:
        model: ``open_clip:NAME:TAG``, where TAG is a pretrained tag or the path of a checkpoint; anything else is the
            path or URI of a checkpoint.
        device: where it runs.

    Raises:
        UserError: the file cannot be read, or open_clip has no such model or weights.
    """
    if not model.startswith(OPEN_CLIP):
        return ClipEncoder(read_model(model), model, device)
    name, colon, tag = model.removeprefix(OPEN_CLIP).partition(":")
    if not colon or not tag:
        raise UserError(f"model {model!r}: write open_clip:NAME:TAG, where TAG is a pretrained tag or a path")
    return _open_clip(name, tag, model, device)


def _open_clip(name: str, tag: str, label: str, device: torch.device) -> Encoder:
    try:
        model, tokenizer, transform = open_clip_models.open_model(name, tag)
    except UserError:
        raise
    # parsers and downloads raise errors of many types
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"open_clip cannot load {name!r} with {tag!r}: {reason}; see open_clip.list_pretrained() for names and "
            "tags, or name the path of a checkpoint"
        ) from None
    return OpenClipEncoder(model, transform, tokenizer, label, device)
