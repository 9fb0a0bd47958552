"""A stream whose batches have stored trunk features instead of images.

Shapes: B batch, C width of a tower, h×w the grid of the attention stage, T context length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from torch import Tensor

from siclip.data.batch import Batch, TrunkFeatures
from siclip.data.captions import uniform
from siclip.data.cursor import Cursor
from siclip.errors import UserError
from siclip_platform.stream import Columns, Stream
from siclip_platform.stream.columns import shares, teacher_columns
from siclip_platform.stream.trunk_features.files import TrunkCache
from siclip_platform.stream.windows import EMBEDDINGS, Sample, Windows, caption_of

RowIndices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class CachedStream:
    """The samples, order and captions of ``stream``, with the features of ``cache``; picklable.

    Raises:
        UserError: the cache has another image size, context length or number of samples than the stream, or other
            crops than its stored embeddings.
    """

    stream: Stream
    cache: TrunkCache

    def __post_init__(self) -> None:
        key, stream = self.cache.key, self.stream
        samples = sum(shard.rows for shard in self.cache.manifest.images) // key.augmentations
        stored = stream.sources[0].embeddings
        pairs = {
            "set of crops": (key.crops, stored and stored.hash),
            "image size": (key.image_size, stream.image_size),
            "context length": (key.context_length, stream.context_length),
            "number of samples": (samples, stream.sources[0].rows),
        }
        for what, (theirs, ours) in pairs.items():
            if theirs != ours:
                raise UserError(
                    f"trunk cache {self.cache.folder} has another {what} ({theirs}) than the stream ({ours}): "
                    "build a cache of this model and dataset"
                )

    def columns(self, start: int, stop: int, windows: Windows) -> Columns:
        """As `Stream.columns`, but with ``image_rows`` (rows of the cache's images) in place of ``images``.

        If the cache has several variants of an image, (seed, epoch, sample id) decides which one is used; with stored
        embeddings it is the crop that training from images would use.
        """
        stream, variants = self.stream, self.cache.key.augmentations
        samples = stream.samples(start, stop, windows)
        captions = [caption_of(sample, stream.captions, stream.seed) for sample in samples]
        pairs = stream.stored(samples, [index for index, _ in captions])
        rows = [
            sample.number * variants + (self._variant(sample) if pair is None else pair.crop)
            for sample, pair in zip(samples, pairs, strict=True)
        ]
        columns = stream.texts(samples, [text for _, text in captions]) | teacher_columns(pairs)
        columns |= stream.false_texts(samples, [index for index, _ in captions])
        return columns | {"image_rows": np.array(rows, dtype=np.int64)}

    def _variant(self, sample: Sample) -> int:
        variants = self.cache.key.augmentations
        return int(uniform(self.stream.seed, sample.epoch, sample.id, "variant") * variants)

    def batches(self, batch_size: int, start: int, stop: int, rank: int = 0, workers: int = 1) -> Iterator[Batch]:
        """As `siclip_platform.stream.thread_batches`, but lazily, and with ``features`` in bf16 in place of images.

        Raises:
            UserError: a sample or a caption is not in the cache.
        """
        images, texts = (
            StoredFeatures([self.cache.folder / shard.path for shard in shards])
            for shards in (self.cache.manifest.images, self.cache.manifest.texts)
        )
        windows = self.stream.windows(("id", "captions", EMBEDDINGS))
        for first, last in shares(batch_size, start, stop, rank, workers):
            columns = self.columns(first, last, windows)
            text_rows = texts.find(columns["caption_ids"])
            # shards that were exchanged keep their number of rows, but not their ids
            for what, found, ids in (
                ("samples", images.ids[columns["image_rows"]], columns["image_ids"]),
                ("captions", texts.ids[text_rows], columns["caption_ids"]),
            ):
                if not np.array_equal(found, ids):
                    raise UserError(
                        f"trunk cache {self.cache.folder} has other {what} than the stream reads: build a cache of "
                        "this dataset"
                    )
            features = TrunkFeatures(images.take(columns["image_rows"]), texts.take(text_rows))
            yield replace(Batch.from_arrays(columns), features=features).staged()

    def cursor(self, position: int) -> Cursor:
        """As `Stream.cursor`."""
        return self.stream.cursor(position)


class StoredFeatures:
    """The features of several shards as one sequence of rows; memory-mapped, so a row is read when it is used."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._shards: list[Tensor] = []
        ids = []
        for path in paths:
            with safe_open(path, "pt") as file:
                self._shards.append(file.get_tensor("features"))
                ids.append(file.get_tensor("ids").numpy())
        self.ids: RowIndices = np.concatenate(ids)
        self._ends = np.cumsum([len(shard) for shard in self._shards])
        self._sorted = np.argsort(self.ids)

    def find(self, ids: RowIndices) -> RowIndices:
        """Return a row for each id; for an id that is not stored, a row of another one."""
        positions = np.searchsorted(self.ids, ids, sorter=self._sorted)
        return self._sorted[np.minimum(positions, len(self.ids) - 1)]

    def take(self, rows: RowIndices) -> Tensor:
        """Return the features of rows in bf16: (B, C, h, w) of images, (B, T, C) of texts."""
        taken = torch.empty(len(rows), *self._shards[0].shape[1:], dtype=torch.bfloat16)
        shards = np.searchsorted(self._ends, rows, side="right")
        for number in np.unique(shards):
            shard, targets = self._shards[number], np.flatnonzero(shards == number)
            start = self._ends[number] - len(shard)
            taken[torch.from_numpy(targets)] = shard[torch.from_numpy(rows[targets] - start)]
        return taken
