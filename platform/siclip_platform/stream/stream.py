"""From positions to batches: which samples stand there, read, decoded, augmented, paired with a caption.

Everything that a batch holds follows from its positions, so any thread, task or worker can make any part of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from siclip.config import ModelConfig
from siclip.data.augment import load_crop, load_pixels
from siclip.data.captions import stable_id
from siclip.data.config import AugmentConfig, CaptionPolicy
from siclip.data.cursor import Cursor
from siclip.data.mixing import Mixture, mixture
from siclip.data.order import Window
from siclip.errors import UserError
from siclip.models.registry import model_config
from siclip.tokenizer import tokenize
from siclip_platform.recipes.recipe import MixedDataset, Recipe
from siclip_platform.storage import as_path
from siclip_platform.storage.hashing import canonical_hash
from siclip_platform.stream.columns import Columns, teacher_columns
from siclip_platform.stream.source import StreamSource
from siclip_platform.stream.stored import StoredPair
from siclip_platform.stream.windows import LoadedWindow, Sample, Windows, caption_of


@dataclass(frozen=True)
class Stream:
    """How a recipe reads a split: picklable, so that Ray tasks can carry it."""

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

    @classmethod
    def of(cls, recipe: Recipe, model: ModelConfig, split: str = "train") -> Stream:
        """The training stream of a recipe for a model's image size.

        Captions have the context length that the model has by its name: a student with a shorter one cuts them,
        and its teacher sees them whole.

        Raises:
            UserError: a dataset is missing, damaged or does not match the schema, or has too few samples.
        """
        data, seed = recipe.data, recipe.training.seed
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
        )
        stream._check_windows()
        return stream

    @property
    def rows(self) -> int:
        """Samples of an epoch: of each source its own where all have weight 1."""
        return sum(source.order.rows for source in self.sources)

    def cursor(self, position: int) -> Cursor:
        """Where the stream stands after so many samples."""
        first = self.sources[0].order
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
        order = canonical_hash(settings, spaced=True)
        epoch = self.mixture.counts(position)[0] // first.rows
        hashes = tuple(chain.from_iterable(source.hashes for source in self.sources))
        return Cursor(seed=self.seed, epoch=epoch, position=position, datasets=hashes, order=order)

    def windows(self, fields: tuple[str, ...] = ("id", "image", "captions"), ahead: bool = False) -> Windows:
        """A memory of windows for one reader of this stream."""

        def load(source: int, window: Window) -> LoadedWindow:
            return LoadedWindow(self.sources[source], window, fields, self.captions, self.unique_batch)

        return Windows(load, kept=(3 if ahead else 2) * len(self.sources), ahead=ahead)

    def samples(self, start: int, stop: int, windows: Windows) -> list[Sample]:
        """The samples at the positions start ≤ p < stop."""
        owners = self.mixture.owners(start, stop)
        found: list[Iterator[Sample]] = []
        places = zip(self.sources, self.mixture.counts(start), self.mixture.counts(stop), strict=True)
        for number, (source, first, last) in enumerate(places):
            loaded: list[Sample] = []
            for piece in source.order.pieces(first, last):
                window = windows.get(number, piece.window, _behind(source, piece.window))
                loaded += window.samples(piece.start, piece.stop)
            found.append(iter(loaded))
        return [next(found[owner]) for owner in owners]

    def columns(self, start: int, stop: int, windows: Windows, images: np.ndarray | None = None) -> Columns:
        """The columns of `Batch` for the positions start ≤ p < stop; ``images`` is where the pixels go."""
        samples = self.samples(start, stop, windows)
        chosen = [caption_of(sample, self.captions, self.seed) for sample in samples]
        pairs = self.stored(samples, [index for index, _ in chosen])
        if images is None:
            images = np.empty((len(samples), self.image_size, self.image_size, 3), dtype=np.uint8)
        for index, (sample, pair) in enumerate(zip(samples, pairs, strict=True)):
            images[index] = self._pixels(sample, pair)
        return {"images": images} | self.texts(samples, [text for _, text in chosen]) | teacher_columns(pairs)

    def stored(self, samples: Sequence[Sample], captions: Sequence[int]) -> list[StoredPair | None]:
        """What is stored of samples with the captions of these indices."""
        return [sample.stored(index, self.seed) for sample, index in zip(samples, captions, strict=True)]

    def _pixels(self, sample: Sample, stored: StoredPair | None) -> np.ndarray:
        place, size = f"sample {sample.id}", self.image_size
        if stored is not None:
            return load_crop(sample.image, place, size, stored.box, scaled=self.scaled_decode)
        key = (self.seed, sample.epoch, sample.id)
        return load_pixels(sample.image, place, size, self.augment, key, scaled=self.scaled_decode)

    def texts(self, samples: Sequence[Sample], texts: Sequence[str]) -> Columns:
        """``tokens``, ``image_ids`` and ``caption_ids`` of samples with these captions."""
        return {
            "tokens": tokenize(texts, self.context_length).numpy().astype(np.int32),
            "image_ids": np.array([stable_id(sample.id) for sample in samples], dtype=np.int64),
            "caption_ids": np.array([stable_id(text) for text in texts], dtype=np.int64),
        }

    def _check_windows(self) -> None:
        if not self.unique_batch:
            return
        order = self.sources[0].order
        rows = order.window_at(0).rows
        if rows < min(2 * self.unique_batch, order.rows):
            raise UserError(
                f"data.unique_captions rearranges samples inside a window, and {order.window_groups} row groups hold "
                f"{rows}, fewer than two batches of {self.unique_batch}: raise data.window_row_groups"
            )


def _behind(source: StreamSource, window: Window) -> Any:
    return lambda: source.order.window_at(window.position + window.rows)
