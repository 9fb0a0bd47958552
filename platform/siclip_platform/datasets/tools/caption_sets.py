"""Diagnostics of a caption set beside a dataset: what a captioner wrote, and whether it wrote the same everywhere."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from siclip.data.images import decode_image
from siclip.data.transforms import fit_image
from siclip_platform.datasets.manifest import Dataset
from siclip_platform.datasets.parquet import parquet_file
from siclip_platform.datasets.sidecar import Sidecar
from siclip_platform.datasets.tools.inspect import Spread

if TYPE_CHECKING:
    from siclip_platform.datasets.derived.embeddings.teacher import EmbeddingTeacher

MOST_IMAGES = 100_000
"""That are looked at, evenly spread over the row groups: the n-grams of all of CC12M would not fit into memory."""
MOST_COMPARED = 512
"""Images whose cosines a teacher computes."""
DEGENERATE = 0.5
"""Share of captions that other images have too, from which a set is told to be degenerate."""
RUN = 3
"""Repetitions of a word that are shown as a run."""


@dataclass
class CaptionRows:
    """Captions of some images.

    Attributes:
        images: all images of the set.
        texts: of each image that was looked at.
        pictures: encoded images, of the first ones.
    """

    images: int
    texts: list[list[str]]
    pictures: list[bytes]


@dataclass
class CaptionStatistics:
    """What the captions of some images are like. Words are compared without case; n-grams do not cross captions.

    Attributes:
        captions: number of them.
        without: images that have none.
        words: per caption.
        vocabulary: number of different words.
        distinct: n → different n-grams divided by all (arXiv 1510.03055).
        repeated: share of captions that another image has too.
        original: share of captions that the dataset itself has for the image.
        most_frequent: captions with the number of images that have them, those of several images only.
        runs: the longest runs of one word, as (length, word, caption).
        cosine: with the image, by a teacher; None without one.
    """

    captions: int
    without: int
    words: Spread
    vocabulary: int
    distinct: dict[int, float]
    repeated: float
    original: float
    most_frequent: list[tuple[str, int]]
    runs: list[tuple[int, str, str]]
    cosine: Spread | None = None

    @property
    def is_degenerate(self) -> bool:
        return self.repeated > DEGENERATE


def read_captions(dataset: Dataset, sidecar: Sidecar, split: str) -> tuple[CaptionRows, CaptionRows]:
    """Return the captions of a set and the dataset's own, of the same images."""
    groups = [
        (shard, group, rows) for shard, sizes in enumerate(dataset.groups(split)) for group, rows in enumerate(sizes)
    ]
    total = sum(rows for *_, rows in groups)
    # As many row groups as have that many images, evenly spread.
    kept = max(1, round(len(groups) * min(1, MOST_IMAGES / max(1, total))))
    chosen = {int(index) for index in np.linspace(0, max(0, len(groups) - 1), kept)} if groups else set()
    written, own = CaptionRows(total, [], []), CaptionRows(total, [], [])
    for index in sorted(chosen):
        shard, group, _ = groups[index]
        columns = ["captions", *(["image"] if len(own.pictures) < MOST_COMPARED else [])]
        with parquet_file(dataset.shards(split)[shard]) as file:
            table = file.read_row_group(group, columns=columns)
        texts = [[caption["text"] for caption in row] for row in table["captions"].to_pylist()]
        own.texts += texts
        found = sidecar.read(split, shard, group, ["captions"])["captions"].to_pylist()
        written.texts += [[caption["text"] for caption in row] for row in found]
        if "image" in columns:
            own.pictures += table["image"].to_pylist()[: MOST_COMPARED - len(own.pictures)]
    written.pictures = own.pictures
    return written, own


def caption_statistics(
    rows: CaptionRows, own: CaptionRows | None = None, teacher: EmbeddingTeacher | None = None
) -> CaptionStatistics:
    """Compute the statistics of captions.

    Args:
        rows: the captions.
        own: the dataset's, for the share that equals one of them.
        teacher: for the cosines of the first images.
    """
    split = [[_words(text) for text in texts] for texts in rows.texts]
    flat = [words for texts in split for words in texts]
    # Once per image: an image that has a caption twice does not share it.
    images = Counter(key for texts in split for key in {" ".join(words) for words in texts})
    examples = {" ".join(_words(text)): text for texts in rows.texts for text in texts}
    repeated = sum(images[" ".join(words)] > 1 for words in flat)
    equal = 0
    if own is not None:
        for texts, theirs in zip(split, own.texts, strict=True):
            equal += sum(words in [_words(text) for text in theirs] for words in texts)
    each = max(1, len(flat))
    return CaptionStatistics(
        captions=len(flat),
        without=sum(not texts for texts in rows.texts),
        words=Spread.of([len(words) for words in flat]),
        vocabulary=len({word for words in flat for word in words}),
        distinct={size: _distinct(flat, size) for size in (1, 2, 3)},
        repeated=repeated / each,
        original=equal / each,
        most_frequent=[(examples[key], count) for key, count in images.most_common(3) if count > 1],
        runs=sorted(set(_runs(rows.texts)), reverse=True)[:3],
        cosine=_cosine(rows, teacher) if teacher else None,
    )


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _distinct(captions: Sequence[Sequence[str]], size: int) -> float:
    """Different n-grams of ``size`` words divided by all of them; NaN if no caption is that long."""
    found = [tuple(words[start : start + size]) for words in captions for start in range(len(words) - size + 1)]
    return len(set(found)) / len(found) if found else float("nan")


def _runs(texts: Sequence[Sequence[str]]) -> Iterator[tuple[int, str, str]]:
    for text in (text for some in texts for text in some):
        length, word = max(((len(list(same)), word) for word, same in groupby(_words(text))), default=(0, ""))
        if length >= RUN:
            yield length, word, text


def _cosine(rows: CaptionRows, teacher: EmbeddingTeacher) -> Spread:
    found: list[float] = []
    for number, (data, texts) in enumerate(zip(rows.pictures, rows.texts, strict=False)):
        if texts:
            pixels = fit_image(decode_image(data, f"image {number}"), teacher.size[0])
            found += (teacher.texts(texts) @ teacher.images(np.stack([pixels]))[0]).tolist()
    return Spread.of(found)
