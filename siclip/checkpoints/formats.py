"""Checkpoint files in siclip, official, open_clip and timm layout, as torch or safetensors files.

Loading never executes code from a file.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, get_args

import safetensors.torch
import torch
from pydantic import ValidationError
from safetensors import safe_open
from torch import Tensor

from siclip.checkpoints.layouts import IMAGE, TEXT, detect_layout, to_siclip
from siclip.checkpoints.open_clip_config import card_beside
from siclip.checkpoints.patterns import (
    TOWERS,
    Tower,
    drop_aliases,
    fill_aliases,
    merge_blocks,
    shared_groups,
    unequal_aliases,
)
from siclip.config import ModelConfig
from siclip.data.transforms import PREPROCESSING, check_preprocessing
from siclip.errors import UserError
from siclip.models.clip import Clip
from siclip.open_clip_models import read_config

FORMAT = "siclip-checkpoint"
VERSION = 1
SAFETENSORS = ".safetensors"

Part = Literal["all", "image", "text"]
Sharing = Literal["refuse", "average", "first"]

_SHOWN_KEYS = 20
_PREFIXES: dict[Tower, str] = {"image": IMAGE, "text": TEXT}


def save_checkpoint(path: Path | str, model: Clip, training: Mapping[str, Any] | None = None) -> None:
    """Write the model with its config atomically: to a temporary file, then fsync and rename.

    Args:
        path: a suffix ``.safetensors`` selects that format, with the config in the metadata and shared tensors
            stored once; any other suffix a torch file.
        model: in train form.
        training: training state, for torch files only.

    Raises:
        UserError: the model is reparameterized, there is training state for a safetensors file, or the file
            cannot be written.
    """
    path = Path(path)
    if model.is_reparameterized:
        raise UserError(f"{path}: a reparameterized model cannot be rebuilt; save the model it was created from")
    state = model.state_dict()
    config = model.config.model_dump(mode="json")
    preprocessing = dict(PREPROCESSING)
    mark: dict[str, Any] = {"format": FORMAT, "version": VERSION, "config": config, "preprocessing": preprocessing}
    if path.suffix == SAFETENSORS:
        if training is not None:
            raise UserError(
                f"{path}: a safetensors file cannot contain training state; save to a .pt file or omit the state"
            )
        tensors = {name: value.contiguous() for name, value in drop_aliases(state, model.config).items()}
        metadata = {
            "format": FORMAT,
            "version": str(VERSION),
            "config": json.dumps(config),
            "preprocessing": json.dumps(preprocessing),
        }
        content: Any = safetensors.torch.save(tensors, metadata)
    else:
        content = mark | {"model": state, "training": dict(training) if training is not None else None}
    # Beside the target, because a rename is atomic only within one file system.
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content) if isinstance(content, bytes) else torch.save(content, file)
            # Before the rename: after a crash the final name must not refer to unwritten data.
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        # When a disk is full torch raises an error of its own while it handles that of the file.
        reason = error if isinstance(error, OSError) else error.__context__
        if not isinstance(reason, OSError):
            raise
        raise UserError(f"{path} cannot be written: {reason.strerror or reason}; choose another path") from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def read_checkpoint(path: Path | str) -> dict[str, Any]:
    """The content of a siclip checkpoint: format, version, config, model, training.

    ``model`` has shared tensors under the name of every block that uses them, in both file formats.

    Raises:
        UserError: the file is missing, empty, truncated, a pickle with code, or not a siclip checkpoint.
    """
    content = _read_file(Path(path))
    if content.get("format") != FORMAT:
        raise UserError(
            f"{path} is not a siclip checkpoint (no format mark): convert it with "
            "`siclip-platform model convert FILE OUT --model mobileclip-s0`, or read a MobileCLIP, open_clip or timm "
            "state dict with siclip.load_checkpoint(model, path)"
        )
    return content


def checkpoint_config(content: Mapping[str, Any], path: Path | str) -> ModelConfig:
    """The model config in the content that `read_checkpoint` returned.

    Args:
        content: the checkpoint's content.
        path: named in the error.

    Raises:
        UserError: this version has no such config.
    """
    try:
        return ModelConfig.model_validate(content["config"])
    except ValidationError as error:
        lines = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'config'}: {e['msg']}" for e in error.errors())
        raise UserError(f"{path}: its model config does not fit this version: {lines}") from None


def load_model(path: Path | str) -> Clip:
    """Rebuild the model of a siclip checkpoint, with its weights.

    Raises:
        UserError: as `read_checkpoint`, or as `checkpoint_config`.
    """
    path = Path(path)
    content = read_checkpoint(path)
    model = Clip(checkpoint_config(content, path))
    _load_strictly(model, content["model"], "all", path)
    return model


def load_checkpoint(model: Clip, path: Path | str, *, part: Part = "all", sharing: Sharing = "refuse") -> None:
    """Load weights into ``model`` from a torch or safetensors file. An error leaves the model unchanged.

    The file is a siclip checkpoint or a state dict in siclip, official MobileCLIP, open_clip or timm layout
    (`siclip.checkpoints.layouts`). The state dict may be inside an open_clip or timm training checkpoint under
    ``state_dict``; timm's averaged weights under ``state_dict_ema`` are not used. Where open_clip's
    ``open_clip_config.json`` lies beside an open_clip state dict, its preprocessing must be the models'.

    Args:
        model: in train form.
        path: the file.
        part: ``image`` or ``text`` loads that tower only, without the logit scale.
        sharing: what to do if the file's sharing pattern differs from the model's: ``refuse``, or use for each group
            of blocks the mean of their weights (``average``) or the first block's (``first``). Blocks that share in
            the file but not in the model each get a copy. A pattern that shares whole blocks including the first
            block's value matrix (``first_value``) cannot be undone, because only the first block can have one.

    Raises:
        UserError: as `read_checkpoint`; the file is of another model (its missing and unexpected keys are listed);
            its sharing pattern differs and ``sharing`` is ``refuse``; or its images are prepared in another way.
    """
    if part not in get_args(Part) or sharing not in get_args(Sharing):
        raise UserError(
            f"part must be one of {get_args(Part)} and sharing one of {get_args(Sharing)}, got {part!r}, {sharing!r}"
        )
    path = Path(path)
    if model.is_reparameterized:
        raise UserError(
            f"{path}: checkpoints hold the train form; load it into the train form, then call reparameterize()"
        )
    content = _read_file(path)
    marked = content.get("format") == FORMAT
    if marked:
        towers: tuple[Tower, ...] = TOWERS if part == "all" else (part,)
        _check_config(model.config, checkpoint_config(content, path), towers, sharing, path)
    try:
        state = content["model"] if marked else _foreign(content, model, path)
        state = _of_part(state, part)
        if sharing != "refuse":
            state = merge_blocks(state, model.config, sharing)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    _load_strictly(model, state, part, path)


def _foreign(content: dict[str, Any], model: Clip, path: Path) -> dict[str, Tensor]:
    """The state dict in a file of another project, renamed to ours, with all names of shared tensors."""
    flat = _tensors(content)
    card = card_beside(path)
    if card is not None and detect_layout(flat) == "open_clip":
        config = read_config(card)
        preprocessing = config.get("preprocess_cfg") if isinstance(config, dict) else None
        check_preprocessing(preprocessing if isinstance(preprocessing, dict) else {}, str(card))
    return fill_aliases(to_siclip(flat, model), model.config)


def _read_file(path: Path) -> dict[str, Any]:
    """A file's content. A siclip checkpoint is validated, and shared tensors get all their names."""
    try:
        if path.is_dir():
            raise UserError(f"checkpoint {path} is a folder: name the file inside it")
        if not path.is_file():
            raise UserError(f"checkpoint {path} does not exist")
        if path.stat().st_size == 0:
            raise UserError(f"checkpoint {path} is empty")
    except OSError as error:
        raise UserError(f"checkpoint {path} cannot be read: {error.strerror}") from None
    _check_unpacked_size(path)
    try:
        content = _read_safetensors(path) if path.suffix == SAFETENSORS else _read_torch(path)
    # On bytes of another format the parsers raise exceptions of almost any type.
    except Exception as error:
        raise UserError(_unreadable(path, error)) from None
    if not isinstance(content, dict):
        raise UserError(f"{path} contains a {type(content).__name__}, not a checkpoint")
    if content.get("format") != FORMAT:
        return content
    if content.get("version") != VERSION:
        raise UserError(
            f"{path} is a siclip checkpoint of version {content.get('version')!r}, this code reads {VERSION!r}"
        )
    # As text: a damaged file may have tensors here, whose comparison is no truth value.
    preprocessing = repr(content.get("preprocessing", dict(PREPROCESSING)))
    if preprocessing != repr(dict(PREPROCESSING)):
        raise UserError(
            f"{path} expects images prepared by {preprocessing:.200}, this version prepares them otherwise: read it "
            "with the version that wrote it"
        )
    if lacks := {"config", "model", "training"} - content.keys():
        raise UserError(
            f"{path} is a siclip checkpoint without {', '.join(sorted(lacks))}: it was not saved by siclip"
        )
    try:
        state = _tensors({"state_dict": content["model"]})
    except UserError as error:
        raise UserError(f"{path}: its model is {error}") from None
    content["model"] = fill_aliases(state, checkpoint_config(content, path))
    return content


def _check_unpacked_size(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(record.file_size for record in archive.infolist())
    # Damaged bytes raise almost anything here; the parsers say what is wrong with them.
    except Exception:
        return
    # torch.save never compresses, but torch.load unpacks records that are: a file of megabytes could fill the memory.
    if unpacked > path.stat().st_size:
        raise UserError(
            f"{path} is refused: its records unpack to {unpacked:,} bytes, more than the file has; torch.save writes "
            "them uncompressed, so save the state dict again"
        )


def _read_torch(path: Path) -> Any:
    with warnings.catch_warnings():
        # torch warns about pickle protocols that it does not write itself.
        warnings.simplefilter("ignore", UserWarning)
        # timm's checkpoints contain their command-line arguments as a Namespace.
        with torch.serialization.safe_globals([Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)


def _read_safetensors(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - the file is not a mapping
    if metadata.get("format") != FORMAT:
        return state
    mark = {"format": FORMAT, "version": int(metadata["version"]), "config": json.loads(metadata["config"])}
    if "preprocessing" in metadata:
        mark["preprocessing"] = json.loads(metadata["preprocessing"])
    return mark | {"model": state, "training": None}


def _unreadable(path: Path, error: Exception) -> str:
    if asked := re.search(r"GLOBAL (\S+)", str(error)):
        return f"{path} is refused: it asks for {asked[1]}, and loading it would run code; save a state dict instead"
    if isinstance(error, pickle.UnpicklingError):
        return f"{path} is refused: it is not a plain tensor file, or loading it would run code"
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"{path} cannot be read as a checkpoint: is it truncated, or a different file format? ({reason})"


def _tensors(content: dict[str, Any]) -> dict[str, Tensor]:
    """The state dict in a file without our format mark; training checkpoints of open_clip and timm wrap theirs."""
    state = content.get("state_dict", content)
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise UserError("not a state dict: its keys are not names")
    if others := [key for key, value in state.items() if not isinstance(value, Tensor)]:
        raise UserError(f"not a state dict: there is no tensor under {', '.join(others[:3])}")
    # DistributedDataParallel prefixes "module.", torch.compile "_orig_mod."; either may be the outer one.
    for wrapper in ("module.", "_orig_mod.", "module."):
        if all(key.startswith(wrapper) for key in state):
            state = {key.removeprefix(wrapper): value for key, value in state.items()}
    return state


def _of_part(state: Mapping[str, Tensor], part: Part) -> dict[str, Tensor]:
    """The entries of one tower, or all of them.

    Raises:
        UserError: the file lacks the tower, or a tower for ``all``.
    """
    present = [tower for tower in TOWERS if any(key.startswith(_PREFIXES[tower]) for key in state)]
    if part == "all":
        if len(present) == 1:
            raise UserError(f"it contains only the {present[0]} tower: load it with part={present[0]!r}")
        return dict(state)
    if part not in present:
        raise UserError(f"it contains no {part} tower")
    return {key: value for key, value in state.items() if key.startswith(_PREFIXES[part])}


def _check_config(
    ours: ModelConfig, file: ModelConfig, towers: tuple[Tower, ...], sharing: Sharing, path: Path
) -> None:
    """Refuse differences that names and shapes do not show: the sharing pattern and the number of heads."""
    for tower in towers:
        here, there = getattr(ours, tower), getattr(file, tower)
        if (here.block, here.layers) != (there.block, there.layers):
            # A different model: _load_strictly reports its keys.
            continue
        if here.heads != there.heads:
            raise UserError(f"{path} has {there.heads} heads in the {tower} tower, but the model has {here.heads}")
        if sharing == "refuse" and shared_groups(ours, tower) != shared_groups(file, tower):
            raise UserError(
                f"{path} was saved with {tower} sharing {there.sharing!r}, but the model has {here.sharing!r}: build "
                f"the model with the file's pattern, or convert with load_checkpoint(…, sharing='average') or 'first'"
            )


def _load_strictly(model: Clip, state: Mapping[str, Tensor], part: Part, path: Path) -> None:
    prefix = "" if part == "all" else _PREFIXES[part]
    expected = {key: value for key, value in model.state_dict().items() if key.startswith(prefix)}
    missing = sorted(set(expected) - set(state))
    unexpected = sorted(set(state) - set(expected))
    reshaped = sorted(
        f"{key} {tuple(state[key].shape)} instead of {tuple(value.shape)}"
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    )
    problems = [
        f"{len(keys)} {what}: {', '.join(keys[:_SHOWN_KEYS])}{', …' if len(keys) > _SHOWN_KEYS else ''}"
        for what, keys in (("missing", missing), ("unexpected", unexpected), ("with another shape", reshaped))
        if keys
    ]
    if problems:
        if any(key.endswith(".alpha") for key in missing):
            problems.append("a siclip model inherits weights of a MobileCLIP through siclip.inherit")
        raise UserError(f"{path} is not a checkpoint of {model.config.name!r}: " + "; ".join(problems))
    # load_state_dict would silently keep the last alias's tensor.
    if different := unequal_aliases(state, model.config):
        raise UserError(
            f"{path} has different tensors where the model shares one: {', '.join(different[:_SHOWN_KEYS])}; build "
            "the model without sharing, or convert with load_checkpoint(…, sharing='average') or 'first'"
        )
    model.load_state_dict(dict(state), strict=part == "all")
