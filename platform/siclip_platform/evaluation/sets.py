"""What a reader returns: samples of one of four tasks, with image files that are read only when they are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from siclip.data.background import InBackground
from siclip.data.images import decode_as_pillow, decode_image
from siclip.errors import UserError
from siclip.evaluation.classification import Templates
from siclip.evaluation.composition import CompositionItem
from siclip.evaluation.encoder import Encoder

Decode = Callable[[bytes], Image.Image]
DECODING_THREADS = 4


def decode_as_benchmarks(data: bytes) -> Image.Image:
    """Decode as CLIP_benchmark and DataComp do: not turned, transparency dropped, see `decode_as_pillow`."""
    return decode_as_pillow(data)


def decode_as_training(data: bytes) -> Image.Image:
    """Decode as the training stream does: upright, transparent pixels over white."""
    return Image.fromarray(decode_image(data))


@dataclass(frozen=True)
class EvaluationSample:
    """One image of a set.

    Attributes:
        key: its name in messages.
        image: the file's bytes.
        label: the index of its class.
        texts: its captions.
        array: labels or metadata, see `ClassificationData`.
    """

    key: str
    image: bytes
    label: int | None = None
    texts: tuple[str, ...] = ()
    array: np.ndarray | None = None


@dataclass(frozen=True)
class ClassificationData:
    """Samples with labels.

    Attributes:
        where: the set's name in messages.
        samples: reads them.
        classnames: in the order of the labels.
        templates: prompts for the class names.
        prompts: the source of names and templates.
        multilabel: a sample's ``array`` has 0 or 1 for each class; otherwise it may have metadata, and ``label`` is
            the class.
    """

    where: str
    samples: Callable[[], Iterator[EvaluationSample]]
    classnames: tuple[str, ...]
    templates: Templates
    prompts: str
    multilabel: bool = False


@dataclass(frozen=True)
class RetrievalData:
    """Samples with captions; fields as in `ClassificationData`."""

    where: str
    samples: Callable[[], Iterator[EvaluationSample]]
    decode: Decode = decode_as_benchmarks


@dataclass(frozen=True)
class CompositionData:
    """Images with true and false captions.

    Attributes:
        where: the set's name in messages.
        samples: reads the images.
        texts: all captions.
        items: indices of an image, in the order of the samples, and of captions in ``texts``.
        winoground: items 2i and 2i + 1 are a pair with swapped captions.
        decode: how images are decoded.
    """

    where: str
    samples: Callable[[], Iterator[EvaluationSample]]
    texts: tuple[str, ...]
    items: tuple[CompositionItem, ...]
    winoground: bool = False
    decode: Decode = decode_as_benchmarks


@dataclass(frozen=True)
class CueData:
    """Cues of WinoGAViL.

    Attributes:
        where: the set's name in messages.
        samples: reads the images.
        cues: (prompt, indices of candidates in the order of the samples, which of them match the cue).
    """

    where: str
    samples: Callable[[], Iterator[EvaluationSample]]
    cues: tuple[tuple[str, tuple[int, ...], tuple[bool, ...]], ...]


def find_file(folder: Path, name: str) -> Path | None:
    """Return the file that an annotation names in a folder; None if there is none, or the name leads out of it.

    A name is data of others: ``../secret.png`` and ``/etc/passwd`` are never read. Links that the set's owner has
    placed in the folder are followed.
    """
    inside = PurePosixPath(name)
    if inside.is_absolute() or ".." in inside.parts:
        return None
    try:
        path = folder / name
        return path if path.is_file() else None
    # a name that no file can have: too long, or with a null byte
    except (OSError, ValueError):
        return None


def texts_of(value: Any) -> list[str]:
    """A text, or a list of texts, as a list.

    Raises:
        ValueError: it is anything else, such as null, an empty list or a number.
    """
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{value!r} is neither a text nor a list of texts")
    return list(texts)


Data = ClassificationData | RetrievalData | CompositionData | CueData


@dataclass(frozen=True)
class Encoded:
    """The encoded images of a set.

    Attributes:
        images: unit embeddings (N, D) of the images that could be read.
        samples: theirs, without bytes.
        positions: their indices among all samples.
        unreadable: the keys of the others.
    """

    images: Tensor
    samples: list[EvaluationSample]
    positions: list[int]
    unreadable: list[str]


def encode_samples(
    encoder: Encoder,
    samples: Iterable[EvaluationSample],
    *,
    where: str,
    decode: Decode = decode_as_benchmarks,
    batch: int = 64,
) -> Encoded:
    """Decode, prepare and encode images; threads decode ahead of the model.

    Args:
        encoder: the model.
        samples: the images.
        where: the set's name in messages.
        decode: how images are decoded.
        batch: images that are encoded at once.

    Raises:
        UserError: there are no samples, or none can be read.
        NotFinite: an embedding is not finite.
    """
    readable: list[EvaluationSample] = []
    positions: list[int] = []
    unreadable: list[str] = []
    parts: list[Tensor] = []
    count = 0
    with ThreadPoolExecutor(DECODING_THREADS) as pool:
        for chunk, pixels in InBackground(_prepared(encoder, iter(samples), decode, batch, pool)):
            good = [index for index, value in enumerate(pixels) if value is not None]
            unreadable += [sample.key for sample, value in zip(chunk, pixels, strict=True) if value is None]
            # without the bytes, since all files of a set may not fit in memory
            readable += [replace(chunk[index], image=b"") for index in good]
            positions += [count + index for index in good]
            count += len(chunk)
            if good:
                parts.append(encoder.encode_images(torch.stack([pixels[index] for index in good])))
    if not count:
        raise UserError(f"{where} has no samples: its test split is empty; name another split or folder")
    if not readable:
        raise UserError(f"{where}: none of its {count} images can be read, the first is {unreadable[0]}")
    return Encoded(torch.cat(parts), readable, positions, unreadable)


def _prepared(
    encoder: Encoder, samples: Iterator[EvaluationSample], decode: Decode, batch: int, pool: ThreadPoolExecutor
) -> Iterator[tuple[list[EvaluationSample], list[Any]]]:
    def prepare(sample: EvaluationSample) -> Tensor | None:
        try:
            image = decode(sample.image)
        except UserError:
            return None
        return encoder.prepare(image)

    while chunk := list(islice(samples, batch)):
        yield chunk, list(pool.map(prepare, chunk))


def caption_index(samples: Sequence[EvaluationSample], where: str) -> tuple[list[str], Tensor]:
    """Return all captions in order, and (T,) the index of each caption's sample.

    Raises:
        UserError: a sample has no caption.
    """
    without = [sample.key for sample in samples if not sample.texts]
    if without:
        raise UserError(f"{where}: {len(without)} images have no caption, the first is {without[0]}")
    texts = [text for sample in samples for text in sample.texts]
    owner = [index for index, sample in enumerate(samples) for _ in sample.texts]
    return texts, torch.tensor(owner)
