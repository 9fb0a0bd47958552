"""Read batches with threads of this process: decoding and resizing release the interpreter's lock."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from siclip.data.batch import Batch
from siclip_platform.stream.columns import Columns, Range, shares
from siclip_platform.stream.stream import Stream
from siclip_platform.stream.windows import SampleWindows

AHEAD = 2
"""Batches that are prepared while one is trained on."""
CHUNK = 32
"""Samples that a thread prepares at a time."""


def thread_batches(
    stream: Stream, batch_size: int, start: int, stop: int, rank: int = 0, workers: int = 1
) -> Iterator[Batch]:
    """Read batches with ``stream.concurrent_reads`` threads of this process.

    Reading starts at once. Images are in pinned memory where there is a CUDA device. The batches are those of
    `siclip_platform.stream.ray_reader.ray_batches`.

    Args:
        stream: what to read.
        batch_size: samples of a whole batch.
        start: the position of the first sample.
        stop: the position after the last sample; the last batch may be smaller.
        rank: which contiguous share of each batch to read.
        workers: the number of shares.

    Raises:
        UserError: while iterating: an image that cannot be decoded.
    """
    return ThreadedBatches(stream, list(shares(batch_size, start, stop, rank, workers)), stream.windows(ahead=True))


class ThreadedBatches(Iterator[Batch]):
    """One batch per range of positions, in order; see `thread_batches`.

    An error in a sample is raised in place of its batch.
    """

    def __init__(
        self,
        stream: Stream,
        ranges: Sequence[Range],
        windows: SampleWindows,
        finished: Callable[[int], None] = lambda position: None,
    ) -> None:
        """
        Args:
            stream: what to read.
            ranges: the positions of each batch.
            windows: where samples come from.
            finished: takes each batch's end, when none of its samples is needed any more.
        """
        self._stream = stream
        self._windows = windows
        self._finished = finished
        self._left = iter(ranges)
        self._pool = ThreadPoolExecutor(stream.concurrent_reads, thread_name_prefix="stream")
        self._pending: deque[tuple[np.ndarray, list[Future[Columns]], int]] = deque()
        self._pin = torch.cuda.is_available()
        self._fill()

    def __next__(self) -> Batch:
        if not self._pending:
            self.close()
            raise StopIteration
        images, chunks, end = self._pending.popleft()
        try:
            parts = [chunk.result() for chunk in chunks]
        except BaseException:
            self.close()
            raise
        self._finished(end)
        # before the columns are joined, so that the threads have work meanwhile
        self._fill()
        columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0] if name != "images"}
        return Batch.from_arrays({"images": images} | columns).staged()

    def close(self) -> None:
        """Stop reading; the threads end."""
        self._pending.clear()
        self._left = iter(())
        self._pool.shutdown(wait=False, cancel_futures=True)

    def __del__(self) -> None:
        # a training that fails drops its batches half-way; the threads must not outlive them
        self.close()

    def _fill(self) -> None:
        while len(self._pending) < AHEAD and (following := next(self._left, None)) is not None:
            start, stop = following
            # threads write into slices of the final array, which saves a copy of all pixels
            size = self._stream.image_size
            images = torch.empty((stop - start, size, size, 3), dtype=torch.uint8, pin_memory=self._pin).numpy()
            chunks = [
                self._pool.submit(
                    self._stream.columns,
                    first,
                    min(first + CHUNK, stop),
                    self._windows,
                    images[first - start : first - start + CHUNK],
                )
                # an empty share needs one chunk too, for its columns
                for first in range(start, max(stop, start + 1), CHUNK)
            ]
            self._pending.append((images, chunks, stop))
