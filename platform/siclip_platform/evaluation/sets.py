"""What a reader gives: samples of one of four kinds, images still encoded and read only when they are needed."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from siclip.data.background import InBackground
from siclip.data.images import BROKEN, decode_image
from siclip.errors import UserError
from siclip.evaluation.classification import Templates
from siclip.evaluation.composition import CompositionItem
from siclip.evaluation.encoder import Encoder

Decode = Callable[[bytes], Image.Image]
DECODING_THREADS = 4


def decode_as_the_field(data: bytes) -> Image.Image:
    """As CLIP_benchmark and DataComp read an image: Pillow, converted to RGB, transparency dropped."""
    with Image.open(io.BytesIO(data)) as image:
        return image.convert("RGB")


def decode_as_training(data: bytes) -> Image.Image:
    """As the training streams of our datasets read an image: transparent pixels over white."""
    return Image.fromarray(decode_image(data))


@dataclass(frozen=True)
class EvaluationSample:
    """One image and what a set says of it. ``key`` names it in messages; ``image`` is a file's bytes."""

    key: str
    image: bytes
    label: int | None = None
    texts: tuple[str, ...] = ()
    array: np.ndarray | None = None


@dataclass(frozen=True)
class ClassificationData:
    """``place``: where it lies, for messages. ``prompts``: where names and templates come from. ``multilabel``: a
    sample's ``array`` holds 0 or 1 for each class; else it may hold metadata, and ``label`` is the class."""

    place: str
    samples: Callable[[], Iterator[EvaluationSample]]
    classnames: tuple[str, ...]
    templates: Templates
    prompts: str
    multilabel: bool = False


@dataclass(frozen=True)
class RetrievalData:
    """Samples with captions."""

    place: str
    samples: Callable[[], Iterator[EvaluationSample]]
    decode: Decode = decode_as_the_field


@dataclass(frozen=True)
class CompositionData:
    """Items that point into the images, by order of the samples, and into ``texts``.

    ``winoground``: the items are pairs that swap their captions.
    """

    place: str
    samples: Callable[[], Iterator[EvaluationSample]]
    texts: tuple[str, ...]
    items: tuple[CompositionItem, ...]
    winoground: bool = False
    decode: Decode = decode_as_the_field


@dataclass(frozen=True)
class CueData:
    """WinoGAViL: cues, each with candidates (order of the samples) and which of them are associated with it."""

    place: str
    samples: Callable[[], Iterator[EvaluationSample]]
    cues: tuple[tuple[str, tuple[int, ...], tuple[bool, ...]], ...]


Data = ClassificationData | RetrievalData | CompositionData | CueData


@dataclass(frozen=True)
class Encoded:
    """Unit embeddings (N, D) of the images that could be read, their samples (without bytes) and their places in
    the order of reading; the keys of those that could not."""

    images: Tensor
    samples: list[EvaluationSample]
    places: list[int]
    unreadable: list[str]


def encode_samples(
    encoder: Encoder,
    samples: Iterable[EvaluationSample],
    *,
    place: str,
    decode: Decode = decode_as_the_field,
    batch: int = 64,
) -> Encoded:
    """Decode, prepare and encode, batch by batch; decoding runs ahead in threads.

    Raises:
        UserError: there are no samples, none can be read, or the model gives an embedding that is not finite.
    """
    kept: list[EvaluationSample] = []
    places: list[int] = []
    unreadable: list[str] = []
    parts: list[Tensor] = []
    count = 0
    with ThreadPoolExecutor(DECODING_THREADS) as pool:
        for chunk, pixels in InBackground(_prepared(encoder, iter(samples), decode, batch, pool)):
            good = [index for index, value in enumerate(pixels) if value is not None]
            unreadable += [sample.key for sample, value in zip(chunk, pixels, strict=True) if value is None]
            kept += [replace(chunk[index], image=b"") for index in good]
            places += [count + index for index in good]
            count += len(chunk)
            if good:
                parts.append(encoder.encode_images(torch.stack([pixels[index] for index in good])))
    if not count:
        raise UserError(f"{place} has no samples: its test split is empty; name another split or folder")
    if not kept:
        raise UserError(f"{place}: none of its {count} images can be read, the first is {unreadable[0]}")
    images = torch.cat(parts)
    check_finite(images, f"{encoder.name} on the images of {place}")
    return Encoded(images, kept, places, unreadable)


def check_finite(embeddings: Tensor, what: str) -> None:
    """
    Raises:
        UserError: an embedding is not finite.
    """
    wrong = int((~embeddings.isfinite().all(dim=1)).sum())
    if wrong:
        raise UserError(f"{what}: {wrong} of {len(embeddings)} embeddings are not finite; the model is broken")


def _prepared(
    encoder: Encoder, samples: Iterator[EvaluationSample], decode: Decode, batch: int, pool: ThreadPoolExecutor
) -> Iterator[tuple[list[EvaluationSample], list[Any]]]:
    def prepare(sample: EvaluationSample) -> Tensor | None:
        try:
            image = decode(sample.image)
        except (*BROKEN, UserError):
            return None
        return encoder.prepare(image)

    while chunk := list(islice(samples, batch)):
        yield chunk, list(pool.map(prepare, chunk))


def caption_index(samples: Sequence[EvaluationSample], place: str) -> tuple[list[str], Tensor]:
    """All captions in order, and (T,) for each the index of its sample.

    Raises:
        UserError: a sample has none.
    """
    without = [sample.key for sample in samples if not sample.texts]
    if without:
        raise UserError(f"{place}: {len(without)} images have no caption, the first is {without[0]}")
    texts = [text for sample in samples for text in sample.texts]
    owner = [index for index, sample in enumerate(samples) for _ in sample.texts]
    return texts, torch.tensor(owner)
