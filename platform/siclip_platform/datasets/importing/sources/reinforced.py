"""What DataCompDR stores of a sample beside image and caption, and what its generator (ml-mobileclip-dr) writes.

``KEY.syn.json`` has synthetic captions under ``syn_text``; ``KEY.paug.json`` under ``param_aug``, for each of K
augmentations, ``[[top, left, height, width], [[operation, magnitude], …]]``: the crop in pixels of the original image
and the operations of RandAugment on the resized crop, as JSON or as its text. ``KEY.npz`` or ``KEY.pth.gz`` has the
teachers' embeddings: ``image_emb`` (K, D) of the augmented crops and ``text_emb`` (T, D) of the caption and then of
the synthetic ones, or these under ``syn_text_emb``. The embeddings of several teachers are side by side.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from siclip.data.augment import OPERATIONS, Operation
from siclip_platform.datasets.importing.sources.columns import unique_keys
from siclip_platform.datasets.importing.sources.limits import MAX_EMBEDDING_BYTES, MAX_EMBEDDINGS
from siclip_platform.datasets.importing.sources.sample import (
    Caption,
    Reason,
    Rejection,
    captions_of,
    decode_text,
)
from siclip_platform.datasets.schema import SYNTHETIC

SYNTHETIC_TEXTS, AUGMENTATIONS = "syn.json", "paug.json"
ARRAYS = ("npz", "pth.gz")
MODEL = "datacompdr"
"""The model of the synthetic captions; the shards do not name it."""
IMAGE_PIXELS = 224
"""Side of the resized crop that operations were drawn for: magnitudes of translations are in its pixels."""
LARGEST = {"Posterize": (0.0, 8.0), "Solarize": (0.0, 256.0), "Rotate": (-360.0, 360.0)}
LARGEST |= dict.fromkeys(("ShearX", "ShearY"), (-10.0, 10.0))
LARGEST |= dict.fromkeys(("TranslateX", "TranslateY"), (-float(IMAGE_PIXELS), float(IMAGE_PIXELS)))
LARGEST |= dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), (-1.0, 10.0))
Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Reinforcement:
    """What is stored of a sample. K augmentations, N operations of each, C captions with the sample's own first.

    Attributes:
        captions: synthetic ones.
        boxes: (K, 4): top, left, height and width in pixels of the original image.
        operations: of each augmentation.
        image: (K, D) embeddings.
        text: (C, D) embeddings.
        original: (height, width) of the original image; None: the image is it.
    """

    captions: tuple[Caption, ...]
    boxes: npt.NDArray[np.int64]
    operations: tuple[tuple[Operation, ...], ...]
    image: Vectors
    text: Vectors
    original: tuple[int, int] | None


def is_reinforced(files: Mapping[str, Any]) -> bool:
    """Return whether a sample's files are those of DataCompDR."""
    return AUGMENTATIONS in files and any(name in files for name in ARRAYS)


def reinforcement_of(files: Mapping[str, bytes], values: Mapping[str, Any], own: int) -> Reinforcement:
    """Read what is stored of a sample.

    Args:
        files: extension → content.
        values: of the ``.json``.
        own: number of the sample's own captions.

    Raises:
        Rejection: something is missing, damaged, too large, or would run code.
    """
    texts = _synthetic_texts(files, values)
    boxes, operations = _augmentations(_json(files, AUGMENTATIONS).get("param_aug"))
    arrays = _arrays(files)
    image = arrays["image"]
    if len(image) != len(boxes):
        _refuse(f"there are {len(image)} image embeddings of {len(boxes)} augmentations")
    text = np.concatenate([arrays[name] for name in ("text", "syn_text") if name in arrays])
    if len(text) != own + len(texts):
        _refuse(f"there are {len(text)} text embeddings of {own} captions and {len(texts)} synthetic ones")
    captions, kept = [], list(range(own))
    for number, value in enumerate(texts):
        try:
            [caption] = captions_of(value if isinstance(value, str) else [value])
        except Rejection as rejected:
            # Blank captions occur: their embeddings are dropped with them.
            if rejected.reason is not Reason.EMPTY_CAPTION:
                raise
            continue
        captions.append(Caption(caption.text, SYNTHETIC, MODEL))
        kept.append(own + number)
    return Reinforcement(tuple(captions), boxes, operations, image, text[kept], _original(values))


class Shape(NamedTuple):
    """What the files of a sample have: augmentations and most operations of one, widths of the embeddings."""

    augmentations: int
    operations: int
    image_width: int
    text_width: int


def shape_of(files: Mapping[str, bytes]) -> Shape:
    """Return what the files of a sample have.

    Raises:
        Rejection: they are damaged.
    """
    _, operations = _augmentations(_json(files, AUGMENTATIONS).get("param_aug"))
    arrays = _arrays(files)
    widths = (arrays[name].shape[1] for name in ("image", "text"))
    return Shape(len(operations), max(map(len, operations)), *widths)


def _refuse(detail: str) -> None:
    raise Rejection(Reason.DAMAGED_ROW, detail)


def _json(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    if name not in files:
        raise Rejection(Reason.DAMAGED_ROW, f"there is no .{name}")
    try:
        value = json.loads(decode_text(files[name], f"the .{name}"), object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise Rejection(Reason.DAMAGED_ROW, f"the .{name} is none: {error}") from None
    if not isinstance(value, dict):
        raise Rejection(Reason.DAMAGED_ROW, f"the .{name} is no object")
    return value


def _synthetic_texts(files: Mapping[str, bytes], values: Mapping[str, Any]) -> list[Any]:
    found = _json(files, SYNTHETIC_TEXTS) if SYNTHETIC_TEXTS in files else values
    texts = found.get("syn_text")
    if not isinstance(texts, list):
        raise Rejection(Reason.DAMAGED_ROW, "there is no list syn_text of synthetic captions")
    return texts


def _augmentations(
    value: Any,
) -> tuple[npt.NDArray[np.int64], tuple[tuple[Operation, ...], ...]]:
    """Return the boxes (K, 4) and the operations of each augmentation."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise Rejection(Reason.DAMAGED_ROW, f"param_aug is no JSON: {error}") from None
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_EMBEDDINGS:
        raise Rejection(Reason.DAMAGED_ROW, f"param_aug is no list of 1 to {MAX_EMBEDDINGS} augmentations")
    boxes, operations = [], []
    for augmentation in value:
        if not isinstance(augmentation, list) or len(augmentation) not in (1, 2):
            raise Rejection(Reason.DAMAGED_ROW, "an augmentation is not a crop and the operations of RandAugment")
        boxes.append(_box(augmentation[0]))
        # None: RandAugment was skipped.
        given = (augmentation[1] if len(augmentation) == 2 else None) or []
        operations.append(tuple(map(_operation, given if isinstance(given, list) else [given])))
    return np.array(boxes, np.int64), tuple(operations)


def _box(value: Any) -> tuple[int, ...]:
    whole = isinstance(value, list) and len(value) == 4 and all(type(side) is int for side in value)
    if not whole or min(value[:2]) < 0 or min(value[2:]) < 1 or max(value) > 2**20:
        raise Rejection(Reason.DAMAGED_ROW, f"the crop {str(value)[:60]} is not [top, left, height, width]")
    return tuple(value)


def _operation(value: Any) -> Operation:
    try:
        number, magnitude = value
        name = OPERATIONS[number] if type(number) is int and number >= 0 else str(number)
        if name not in OPERATIONS or isinstance(magnitude, bool) or not isinstance(magnitude, int | float):
            raise ValueError
    except (TypeError, ValueError, IndexError):
        raise Rejection(Reason.DAMAGED_ROW, f"{str(value)[:60]} is no operation of RandAugment") from None
    least, most = LARGEST.get(name, (-math.inf, math.inf))
    if not math.isfinite(magnitude) or not least <= magnitude <= most:
        raise Rejection(Reason.DAMAGED_ROW, f"the magnitude {magnitude} of {name} is not in {least:g} to {most:g}")
    return name, magnitude / IMAGE_PIXELS if name.startswith("Translate") else float(magnitude)


def _original(values: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the size that img2dataset states of an image that it resized."""
    sides = (values.get("original_height"), values.get("original_width"))
    height, width = (side if type(side) is int and side > 0 else 0 for side in sides)
    return (height, width) if height and width else None


def _arrays(files: Mapping[str, bytes]) -> dict[str, Vectors]:
    """Return ``image``, ``text`` and, if it is apart, ``syn_text``: embeddings (rows, D)."""
    kind = next((name for name in ARRAYS if name in files), None)
    if kind is None:
        raise Rejection(Reason.DAMAGED_ROW, f"there is no .{' or .'.join(ARRAYS)} with embeddings")
    try:
        found = _npz(files[kind]) if kind == "npz" else _torch(files[kind])
    except Rejection:
        raise
    # Damaged bytes raise almost anything in these readers.
    except Exception as error:
        raise Rejection(Reason.DAMAGED_ROW, f"the .{kind} cannot be read: {error}") from None
    arrays = {}
    for name in ("image", "text", "syn_text"):
        # The generator may add a suffix to the names.
        keys = [key for key in found if key.startswith(f"{name}_emb")]
        if len(keys) > 1:
            raise Rejection(Reason.DAMAGED_ROW, f"the .{kind} has {' and '.join(map(repr, keys))}")
        if keys:
            arrays[name] = _vectors(found[keys[0]], f"{keys[0]} of the .{kind}")
    missing = [f"{name}_emb" for name in ("image", "text") if name not in arrays]
    if missing:
        raise Rejection(Reason.DAMAGED_ROW, f"the .{kind} has no {' and no '.join(missing)}")
    if "syn_text" in arrays and arrays["syn_text"].shape[1] != arrays["text"].shape[1]:
        raise Rejection(Reason.DAMAGED_ROW, "text_emb and syn_text_emb have different widths")
    return arrays


def _vectors(array: npt.NDArray[Any], what: str) -> Vectors:
    if array.ndim != 2 or array.dtype.kind != "f" or not 0 < len(array) <= MAX_EMBEDDINGS or not array.shape[1]:
        raise Rejection(
            Reason.DAMAGED_ROW, f"{what} has shape {array.shape} of {array.dtype}, not rows of embeddings"
        )
    vectors = array.astype(np.float32)
    lengths = np.linalg.norm(vectors, axis=1)
    if not np.isfinite(lengths).all() or not lengths.all():
        raise Rejection(Reason.DAMAGED_ROW, f"{what} has a vector that is zero or not finite")
    return vectors


def _npz(data: bytes) -> dict[str, npt.NDArray[Any]]:
    arrays: dict[str, npt.NDArray[Any]] = {}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        _check_unpacked(sum(member.file_size for member in archive.infolist()), ".npz")
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            if "_emb" in name:
                arrays[name] = _npy(archive.read(member), name)
    return arrays


def _npy(data: bytes, name: str) -> npt.NDArray[Any]:
    """Read an array after its header: numpy allocates what the header claims, and unpickles objects if asked to."""
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    if math.prod(shape) * dtype.itemsize != len(data) - stream.tell() or dtype.hasobject:
        raise Rejection(Reason.DAMAGED_ROW, f"{name} claims {shape} numbers of {dtype}, which its bytes are not")
    stream.seek(0)
    array: npt.NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
    return array


def _torch(data: bytes) -> dict[str, npt.NDArray[Any]]:
    import torch

    decoder = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    unpacked = decoder.decompress(data, MAX_EMBEDDING_BYTES + 1)
    _check_unpacked(len(unpacked), ".pth.gz")
    if not decoder.eof:
        raise Rejection(Reason.DAMAGED_ROW, "the .pth.gz is cut")
    with zipfile.ZipFile(io.BytesIO(unpacked)) as archive:
        # torch.save never compresses, but torch.load would unpack.
        _check_unpacked(sum(record.file_size for record in archive.infolist()), ".pth.gz")
    content = torch.load(io.BytesIO(unpacked), map_location="cpu", weights_only=True)
    if not isinstance(content, dict):
        raise Rejection(Reason.DAMAGED_ROW, f"the .pth.gz holds a {type(content).__name__}, not a dict of embeddings")
    found = {str(name): value for name, value in content.items() if "_emb" in str(name)}
    for name, value in found.items():
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            raise Rejection(Reason.DAMAGED_ROW, f"{name} is no tensor of numbers")
        # A tensor may claim more numbers than are stored, by strides of 0.
        _check_unpacked(4 * value.numel(), name)
    return {name: value.detach().float().numpy() for name, value in found.items()}


def _check_unpacked(size: int, what: str) -> None:
    if size > MAX_EMBEDDING_BYTES:
        raise Rejection(Reason.DECOMPRESSION_BOMB, f"{what} unpacks to more than {MAX_EMBEDDING_BYTES} bytes")
