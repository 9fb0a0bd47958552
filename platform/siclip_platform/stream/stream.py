"""From positions to the columns of a batch: read samples, decode, augment and choose a caption.

A batch follows from its positions alone, so any thread, task or worker can compute any part of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from siclip.config import ModelConfig
from siclip.data.captions import stable_id
from siclip.data.config import AugmentConfig, CaptionPolicy
from siclip.data.cursor import Cursor
from siclip.data.mixing import Mixture, mixture
from siclip.data.negatives import NONE, choose_negatives, kind_index
from siclip.data.order import Window
from siclip.errors import UserError
from siclip.models.registry import model_config
from siclip.tokenizer import tokenize
from siclip_platform.recipes.recipe import MixedDataset, Recipe
from siclip_platform.storage import as_path
from siclip_platform.storage.hashing import canonical_hash
from siclip_platform.stream.columns import Columns, teacher_columns
from siclip_platform.stream.decoder import Decoder
from siclip_platform.stream.source import StreamSource
from siclip_platform.stream.stored import StoredPair
from siclip_platform.stream.windows import LoadedWindow, Sample, SampleWindows, Windows, caption_of


@dataclass(frozen=True)
class Stream:
    """How a recipe reads a split; picklable, so that Ray tasks can use it.

    Attributes:
        sources: the recipe's dataset, then those mixed into it.
        mixture: which source each position reads.
        seed: decides order, crops and captions.
        image_size: height and width of a batch's images.
        context_length: tokens of a batch's captions.
        captions: which caption a sample gets.
        augment: how images are augmented.
        scaled_decode: decode JPEG at a reduced size where the crop allows it.
        negatives: false captions of each sample in a batch; 0: none are read.
        unique_batch: the batch size within which captions are kept unique as far as possible; 0: captions may repeat.
        concurrent_reads: threads or tasks that read.
    """

    sources: tuple[StreamSource, ...]
    mixture: Mixture
    seed: int
    image_size: int
    context_length: int
    captions: CaptionPolicy
    augment: AugmentConfig
    scaled_decode: bool
    unique_batch: int
    concurrent_reads: int
    negatives: int = 0

    @classmethod
    def of(cls, recipe: Recipe, model: ModelConfig, split: str = "train") -> Stream:
        """Open a recipe's stream.

        Captions have the context length of the model's registered config if that is longer than the model's own: such
        a student cuts them, and its teacher sees them whole.

        Args:
            recipe: what to read, and how.
            model: decides the image size and, with its name, the context length.
            split: the split's name.

        Raises:
            UserError: a dataset is missing, damaged or does not match the schema, or has too few samples.
        """
        data, seed = recipe.data, recipe.training.seed
        used = data.negatives if recipe.loss.uses_generated else None
        parts = [MixedDataset(path=data.path, limit=data.limit, captions=data.captions), *data.mix]
        sources = tuple(
            StreamSource.of(
                as_path(part.path),
                split,
                seed,
                data.window_row_groups,
                limit=part.limit,
                captions=part.captions,
                embeddings=data.teacher_embeddings,
                negatives=used,
            )
            for part in parts
        )
        stream = cls(
            sources=sources,
            mixture=mixture([source.order.rows for source in sources], [part.weight for part in parts]),
            seed=seed,
            image_size=model.image.image_size,
            context_length=max(model.text.context_length, model_config(model.name).text.context_length),
            captions=data.caption_policy,
            augment=data.augment,
            scaled_decode=data.scaled_decode,
            unique_batch=recipe.training.batch_size if data.unique_captions else 0,
            concurrent_reads=data.concurrent_reads,
            negatives=data.negatives_per_sample if used else 0,
        )
        stream._check_windows()
        return stream

    @property
    def rows(self) -> int:
        """The samples of all sources: an epoch's, if all have weight 1."""
        return sum(source.order.rows for source in self.sources)

    @property
    def decoder(self) -> Decoder:
        """How images are decoded."""
        return Decoder(self.seed, self.image_size, self.augment, self.scaled_decode)

    def cursor(self, position: int) -> Cursor:
        """Return the state of the stream before the sample at a position, for a checkpoint."""
        first = self.sources[0].order
        # what decides which samples follow: a run resumes only if it is unchanged
        settings = {
            "groups": [[[g.shard, g.index, g.rows] for g in source.order.groups] for source in self.sources],
            "window": first.window_groups,
            "shares": [str(share) for share in self.mixture.shares],
            "captions": self.captions.model_dump(mode="json"),
            "augment": self.augment.model_dump(mode="json"),
            "scaled_decode": self.scaled_decode,
            "unique_batch": self.unique_batch,
            "image_size": self.image_size,
        }
        if self.negatives:
            settings["negatives"] = self.negatives
        order = canonical_hash(settings, spaced=True)
        epoch = self.mixture.counts(position)[0] // first.rows
        hashes = tuple(chain.from_iterable(source.hashes for source in self.sources))
        return Cursor(seed=self.seed, epoch=epoch, position=position, datasets=hashes, order=order)

    def windows(self, fields: tuple[str, ...] = ("id", "image", "captions"), ahead: bool = False) -> Windows:
        """Return a cache of windows for one reader of this stream.

        Args:
            fields: what to read, see `siclip_platform.stream.windows.Rows`.
            ahead: load the following window in the background.
        """

        def load(source: int, window: Window) -> LoadedWindow:
            return LoadedWindow(self.sources[source], window, fields, self.captions, self.unique_batch)

        # a batch may span two windows of a source; a third is the one that is loaded ahead
        return Windows(load, kept=(3 if ahead else 2) * len(self.sources), ahead=ahead)

    def samples(self, start: int, stop: int, windows: SampleWindows) -> list[Sample]:
        """Return the samples at the positions start ≤ p < stop, in order."""
        owners = self.mixture.owners(start, stop)
        found: list[Iterator[Sample]] = []
        ranges = zip(self.sources, self.mixture.counts(start), self.mixture.counts(stop), strict=True)
        for number, (source, first, last) in enumerate(ranges):
            loaded: list[Sample] = []
            for piece in source.order.pieces(first, last):
                window = windows.get(number, piece.window, _following(source, piece.window))
                loaded += window.samples(piece.start, piece.stop)
            found.append(iter(loaded))
        return [next(found[owner]) for owner in owners]

    def columns(self, start: int, stop: int, windows: SampleWindows, images: np.ndarray | None = None) -> Columns:
        """Return the columns of `Batch` for the positions start ≤ p < stop.

        Args:
            start: the first position.
            stop: the position after the last one.
            windows: the reader's cache, from `windows`.
            images: an array (B, size, size, 3) uint8 that the pixels are written to (default: a new one).
        """
        samples = self.samples(start, stop, windows)
        chosen = [caption_of(sample, self.captions, self.seed) for sample in samples]
        pairs = self.stored(samples, [index for index, _ in chosen])
        if images is None:
            images = np.empty((len(samples), self.image_size, self.image_size, 3), dtype=np.uint8)
        decoder = self.decoder
        for index, sample in enumerate(samples):
            images[index] = decoder.pixels(sample)
        columns = {"images": images} | self.texts(samples, [text for _, text in chosen]) | teacher_columns(pairs)
        return columns | self.false_texts(samples, [index for index, _ in chosen])

    def stored(self, samples: Sequence[Sample], captions: Sequence[int]) -> list[StoredPair | None]:
        """Return what is stored of samples with the captions of these indices."""
        return [sample.stored(index, self.seed) for sample, index in zip(samples, captions, strict=True)]

    def texts(self, samples: Sequence[Sample], texts: Sequence[str]) -> Columns:
        """Return ``tokens``, ``image_ids`` and ``caption_ids`` of samples with these captions."""
        return {
            "tokens": tokenize(texts, self.context_length).numpy().astype(np.int32),
            "image_ids": np.array([stable_id(sample.id) for sample in samples], dtype=np.int64),
            "caption_ids": np.array([stable_id(text) for text in texts], dtype=np.int64),
        }

    def false_texts(self, samples: Sequence[Sample], captions: Sequence[int]) -> Columns:
        """Return ``negative_tokens``, ``negative_ids`` and ``negative_kinds`` of samples with the captions of these
        indices; no columns if false captions are not read."""
        if not self.negatives:
            return {}
        shape = len(samples), self.negatives
        texts, kinds = [""] * (shape[0] * shape[1]), np.full(shape, NONE, dtype=np.int64)
        for row, (sample, caption) in enumerate(zip(samples, captions, strict=True)):
            made = sample.negatives[caption]
            drawn = choose_negatives(len(made), self.negatives, self.seed, sample.epoch, sample.id)
            for place, index in enumerate(drawn):
                texts[row * self.negatives + place] = made[index]["text"]
                kinds[row, place] = kind_index(made[index]["kind"])
        tokens = tokenize(texts, self.context_length).numpy().astype(np.int32)
        return {
            "negative_tokens": tokens.reshape(*shape, self.context_length),
            "negative_ids": np.array([stable_id(text) for text in texts], dtype=np.int64).reshape(shape),
            "negative_kinds": kinds,
        }

    def _check_windows(self) -> None:
        # the recipe allows unique captions with a single source only
        if not self.unique_batch:
            return
        order = self.sources[0].order
        rows = order.window_at(0).rows
        if rows < min(2 * self.unique_batch, order.rows):
            raise UserError(
                f"data.unique_captions rearranges samples inside a window, and a window of {order.window_groups} row "
                f"groups has {rows} samples, fewer than two batches of {self.unique_batch}: raise "
                "data.window_row_groups"
            )


def _following(source: StreamSource, window: Window) -> Any:
    return lambda: source.order.window_at(window.position + window.rows)
