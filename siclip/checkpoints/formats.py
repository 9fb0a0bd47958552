"""Checkpoint files: ours, and Apple's official flat state dict. Loading never unpickles code."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from timm.models.fastvit import checkpoint_filter_fn
from torch import Tensor

from siclip.config import ModelConfig
from siclip.errors import UserError
from siclip.models.clip import Clip

FORMAT = "siclip-checkpoint"
VERSION = 1


def save_checkpoint(path: Path, model: Clip, training: Mapping[str, Any] | None = None) -> None:
    """Write the model with its config, and the training state if given, by a temp name, fsync and rename."""
    content = {
        "format": FORMAT,
        "version": VERSION,
        "config": model.config.model_dump(mode="json"),
        "model": model.state_dict(),
        "training": dict(training) if training is not None else None,
    }
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint of ours: format, version, config, model, training.

    Raises:
        UserError: missing, empty or truncated file, a pickle with code, or not a checkpoint of ours.
    """
    content = _read_tensors(path)
    if content.get("format") != FORMAT:
        raise UserError(
            f"{path} is not a siclip checkpoint (no format mark): make one with siclip.save_checkpoint, "
            "or load an official state dict with siclip.load_checkpoint(model, path)"
        )
    if content.get("version") != VERSION:
        raise UserError(
            f"{path} is a siclip checkpoint of version {content.get('version')}, this code reads {VERSION}"
        )
    return content


def load_model(path: Path) -> Clip:
    """Rebuild the model of a checkpoint of ours, with its weights.

    Raises:
        UserError: as `read_checkpoint`, or the config in the file does not fit this code.
    """
    content = read_checkpoint(path)
    try:
        model = Clip(ModelConfig.model_validate(content["config"]))
    except ValidationError as error:
        raise UserError(f"{path}: its model config does not fit this version: {error}") from None
    _load_strictly(model, content["model"], path)
    return model


def load_checkpoint(model: Clip, path: Path | str) -> None:
    """Load weights into ``model`` from a checkpoint of ours or Apple's official flat state dict.

    Raises:
        UserError: as `read_checkpoint`, or the file is of another model; the keys are listed.
    """
    path = Path(path)
    content = _read_tensors(path)
    if content.get("format") == FORMAT:
        state = content["model"]
    elif any(key.startswith("image_encoder.model.patch_embed") for key in content):
        state = _official_state(content, model)
    else:
        some = ", ".join(list(content)[:3])
        raise UserError(f"{path} is neither a siclip checkpoint nor a MobileCLIP state dict: it holds {some}, …")
    _load_strictly(model, state, path)


def _read_tensors(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(f"{path} is refused: it is not a plain tensor file, or it would run code") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} cannot be read as a checkpoint, is it cut short? ({reason})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a checkpoint")
    return content


def _official_state(flat: Mapping[str, Tensor], model: Clip) -> dict[str, Tensor]:
    image = checkpoint_filter_fn(dict(flat), model.image_encoder.model)
    state = {f"image_encoder.model.{key}": value for key, value in image.items() if key != "head.fc.bias"}
    return state | {key: value for key, value in flat.items() if not key.startswith("image_encoder.")}


def _load_strictly(model: Clip, state: Mapping[str, Tensor], path: Path) -> None:
    expected = model.state_dict()
    missing = sorted(set(expected) - set(state))
    unexpected = sorted(set(state) - set(expected))
    reshaped = sorted(
        f"{key} {tuple(state[key].shape)} instead of {tuple(value.shape)}"
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    )
    problems = [
        f"{len(keys)} {what}: {', '.join(keys[:5])}{', …' if len(keys) > 5 else ''}"
        for what, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
        if keys
    ]
    if problems:
        raise UserError(f"{path} is not a checkpoint of {model.config.name!r}: " + "; ".join(problems))
    model.load_state_dict(dict(state))
