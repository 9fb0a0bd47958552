"""Windows read by Ray Data tasks, and how their rows travel to the process that trains.

A task reads the rows of one window and sends them in the order of training, in blocks of bounded size. A reading task
imports this module: nothing here may import torch, which takes seconds.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import merge
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa

from siclip.data.config import CaptionPolicy
from siclip.data.mixing import Mixture
from siclip.data.order import Window
from siclip_platform.stream.columns import Range, shares
from siclip_platform.stream.decoder import Decoder
from siclip_platform.stream.source import StreamSource
from siclip_platform.stream.windows import PIXELS, LoadedWindow

BLOCK_BYTES = 16 * 2**20
"""The size of a block: large enough that Ray's cost per block is small, small enough for an early first batch."""
FIELDS = ("id", "image", "captions")


@dataclass(frozen=True)
class Part:
    """The rows of a window that a reader needs.

    Attributes:
        source: the index of the window's source.
        window: the window.
        pieces: ranges of the window's samples in the order of training, ascending.
        stops: for each piece, the position after its last sample.
    """

    source: int
    window: Window
    pieces: tuple[Range, ...]
    stops: tuple[int, ...]

    @property
    def key(self) -> tuple[int, int, int]:
        return self.source, self.window.epoch, self.window.index

    @property
    def rows(self) -> int:
        return sum(stop - start for start, stop in self.pieces)

    def row(self, sample: int) -> int:
        """The index among the part's rows of a sample of the window."""
        before = 0
        for start, stop in self.pieces:
            if start <= sample < stop:
                return before + sample - start
            before += stop - start
        raise KeyError(f"sample {sample} of window {self.window.index} was not requested")

    def stop_of(self, row: int) -> int:
        """The position after which no row up to this one is needed any more."""
        ends = np.cumsum([stop - start for start, stop in self.pieces])
        return self.stops[int(np.searchsorted(ends, row, side="right"))]


def parts_of(
    sources: Sequence[StreamSource],
    mixture: Mixture,
    batch_size: int,
    start: int,
    stop: int,
    rank: int = 0,
    workers: int = 1,
) -> Iterator[Part]:
    """Yield what one reader needs for the positions start ≤ p < stop, in the order in which it needs it.

    Args:
        sources: the sources of the stream.
        mixture: which of them each position reads.
        batch_size: samples of a whole batch.
        start: the first position.
        stop: the position after the last one.
        rank: which contiguous share of each batch is read.
        workers: the number of shares.
    """

    def of_source(number: int) -> Iterator[tuple[int, Part]]:
        order = sources[number].order
        sample, end = mixture.counts(start)[number], mixture.counts(stop)[number]
        while sample < end:
            window = order.window_at(sample)
            last = min(window.position + window.rows, end)
            opens = position_of(mixture, number, sample + 1, start, stop) - 1
            closes = position_of(mixture, number, last, start, stop)
            pieces, stops = [], []
            # the batch that contains the window's first position
            batch = opens - (opens - start) % batch_size
            for first, after in shares(batch_size, batch, stop, rank, workers):
                if first >= closes:
                    break
                a, b = (min(max(mixture.counts(p)[number], sample), last) for p in (first, after))
                if a < b:
                    pieces.append((a - window.position, b - window.position))
                    stops.append(after)
            if pieces:
                yield opens, Part(number, window, tuple(pieces), tuple(stops))
            sample = last

    return map(itemgetter(1), merge(*(of_source(number) for number in range(len(sources))), key=itemgetter(0)))


def position_of(mixture: Mixture, source: int, count: int, start: int, stop: int) -> int:
    """The first position start ≤ p ≤ stop before which a source has given ``count`` samples; ``stop`` if none is."""
    # the counts never decrease
    return start + bisect_right(range(start, stop), count - 1, key=lambda p: mixture.counts(p)[source])


@dataclass(frozen=True)
class PartReader:
    """Reads parts; picklable.

    Attributes:
        sources: the sources of the stream.
        captions: which caption a sample gets.
        unique_batch: see `siclip_platform.stream.stream.Stream`.
        decoder: decodes the images; None sends the files.
    """

    sources: tuple[StreamSource, ...]
    captions: CaptionPolicy
    unique_batch: int
    decoder: Decoder | None = None

    def blocks(self, part: Part) -> Iterator[pa.Table]:
        """Yield the rows of a part in order, for `siclip_platform.stream.windows.Group.of_table`."""
        loaded = LoadedWindow(self.sources[part.source], part.window, FIELDS, self.captions, self.unique_batch)
        rows = np.concatenate([loaded.order[start:stop] for start, stop in part.pieces])
        size = 3 * self.decoder.image_size**2 if self.decoder else max(1, loaded.rows.bytes // part.window.rows)
        step = max(1, BLOCK_BYTES // size)
        for first in range(0, len(rows), step):
            chosen = rows[first : first + step]
            table = loaded.rows.table(chosen)
            if self.decoder is not None:
                table = table.drop_columns("image").append_column(PIXELS, self._pixels(loaded, chosen))
            yield table

    def task(self, parts: Sequence[Part]) -> Callable[[Mapping[str, Any]], Iterator[pa.Table]]:
        """Return the function of Ray Data's tasks, which reads the part of each number in column ``item``."""

        # Defined here, because Ray pickles it by value and names only this module.
        def read(row: Mapping[str, Any]) -> Iterator[pa.Table]:
            yield from self.blocks(parts[int(row["item"][0])])

        return read

    def _pixels(self, loaded: LoadedWindow, rows: np.ndarray) -> pa.Array:
        assert self.decoder is not None
        size = self.decoder.image_size
        # the block's own memory: written once here, and copied once, into Ray's object store
        pixels = np.empty((len(rows), size, size, 3), dtype=np.uint8)
        for index, row in enumerate(rows):
            pixels[index] = self.decoder.pixels(loaded.rows[int(row)])
        width = pa.binary(3 * size**2)
        return pa.FixedSizeBinaryArray.from_buffers(width, len(rows), [None, pa.py_buffer(pixels)])
