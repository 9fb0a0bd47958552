"""A stream whose batches carry stored trunk features instead of images.

Shapes: B batch, C width of a tower, h×w the grid of the attention stage, T context length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import safe_open
from torch import Tensor

from siclip.data.batch import Batch, TrunkFeatures
from siclip.data.captions import choose_caption, stable_id, uniform
from siclip.data.order import Piece, RowGroup
from siclip.tokenizer import tokenize
from siclip_platform.errors import UserError
from siclip_platform.stream import Columns, Stream, regrouped
from siclip_platform.trunk_cache.files import TrunkCache

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class CachedStream:
    """The samples, order and captions of ``stream``, with the features of ``cache``; picklable.

    Raises:
        UserError: the cache is of another image size, context length or number of samples than the stream.
    """

    stream: Stream
    cache: TrunkCache

    def __post_init__(self) -> None:
        key, stream = self.cache.key, self.stream
        samples = sum(shard.rows for shard in self.cache.manifest.images) // key.augmentations
        pairs = {
            "image size": (key.image_size, stream.image_size),
            "context length": (key.context_length, stream.context_length),
            "number of samples": (samples, stream.order.rows),
        }
        for what, (theirs, ours) in pairs.items():
            if theirs != ours:
                raise UserError(
                    f"trunk cache {self.cache.folder} has another {what} ({theirs}) than the stream ({ours}): "
                    "build a cache of this model and dataset"
                )

    def columns(self, piece: Piece) -> Columns:
        """As `Stream.columns`, but with ``image_rows`` (rows of the cache's images) in place of ``images``.

        Where the cache has several variants of an image, (seed, epoch, sample id) decides which one is taken.
        """
        stream, variants = self.stream, self.cache.key.augmentations
        table = pa.concat_tables(
            pq.ParquetFile(stream.shards[group.shard]).read_row_group(group.index, columns=["id", "captions"])
            for group in piece.groups
        )
        places = stream.order.rows_of(piece)
        samples = np.concatenate([self._starts[group] + np.arange(group.rows) for group in piece.groups])
        rows = table.take(pa.array(places)).to_pylist()
        texts = [
            choose_caption(row["captions"], stream.synthetic_share, stream.seed, piece.epoch, row["id"])
            for row in rows
        ]
        chosen = [int(uniform(stream.seed, piece.epoch, row["id"], "variant") * variants) for row in rows]
        return {
            "tokens": tokenize(texts, stream.context_length).numpy().astype(np.int32),
            "image_ids": np.array([stable_id(row["id"]) for row in rows]),
            "caption_ids": np.array([stable_id(text) for text in texts]),
            "image_rows": samples[places] * variants + np.array(chosen),
        }

    def batches(self, batch_size: int, start: int, stop: int) -> Iterator[Batch]:
        """Batches of the positions start ≤ p < stop, with ``features`` in bf16 and no images.

        Raises:
            UserError: a sample or a caption is not in the cache.
        """
        images, texts = (
            StoredFeatures([self.cache.folder / shard.path for shard in shards])
            for shards in (self.cache.manifest.images, self.cache.manifest.texts)
        )
        pieces = self.stream.order.pieces(start, stop)
        for columns in regrouped(map(self.columns, pieces), batch_size):
            text_rows = texts.find(columns["caption_ids"])
            for what, found, ids in (
                ("samples", images.ids[columns["image_rows"]], columns["image_ids"]),
                ("captions", texts.ids[text_rows], columns["caption_ids"]),
            ):
                if not np.array_equal(found, ids):
                    raise UserError(
                        f"trunk cache {self.cache.folder} holds other {what} than the stream reads: build a cache of "
                        "this dataset"
                    )
            features = TrunkFeatures(images.take(columns["image_rows"]), texts.take(text_rows))
            yield replace(Batch.from_arrays(columns), features=features)

    @cached_property
    def _starts(self) -> dict[RowGroup, int]:
        """The number of each row group's first row in the split, in file order."""
        groups = self.stream.order.groups
        return dict(zip(groups, accumulate((group.rows for group in groups), initial=0), strict=False))


class StoredFeatures:
    """The features of several shards, one after the other; mapped into memory, so a row is read when it is taken."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._shards: list[Tensor] = []
        ids = []
        for path in paths:
            with safe_open(path, "pt") as file:
                self._shards.append(file.get_tensor("features"))
                ids.append(file.get_tensor("ids").numpy())
        self.ids: Rows = np.concatenate(ids)
        self._ends = np.cumsum([len(shard) for shard in self._shards])
        self._sorted = np.argsort(self.ids)

    def find(self, ids: Rows) -> Rows:
        """A row for each id; that of another one where there is none of this id."""
        places = np.searchsorted(self.ids, ids, sorter=self._sorted)
        return self._sorted[np.minimum(places, len(self.ids) - 1)]

    def take(self, rows: Rows) -> Tensor:
        """(B, …) in bf16: (C, h, w) of images, (T, C) of texts."""
        taken = torch.empty(len(rows), *self._shards[0].shape[1:], dtype=torch.bfloat16)
        shards = np.searchsorted(self._ends, rows, side="right")
        for number in np.unique(shards):
            shard, places = self._shards[number], np.flatnonzero(shards == number)
            start = self._ends[number] - len(shard)
            taken[torch.from_numpy(places)] = shard[torch.from_numpy(rows[places] - start)]
        return taken
