"""Read a stream's batches with what the recipe names: Ray Data, or threads of this process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from siclip.data.batch import Batch
from siclip.errors import UserError
from siclip_platform.recipes.recipe import DataConfig
from siclip_platform.stream.ray_reader import ray_batches
from siclip_platform.stream.stream import Stream
from siclip_platform.stream.threads import thread_batches

Reader = Literal["threads", "ray"]
UNDER_RAY_TRAIN: Reader = "ray"
IN_PROCESS: Reader = "threads"
"""A search's trials are short and share a machine: a start of Ray Data for each would cost more than it reads."""


def stream_batches(
    stream: Stream,
    data: DataConfig,
    batch_size: int,
    start: int,
    stop: int,
    rank: int = 0,
    workers: int = 1,
    *,
    default: Reader = IN_PROCESS,
) -> Iterator[Batch]:
    """Read the batches of the positions start ≤ p < stop; both readers give the same ones.

    Args:
        stream: what to read.
        data: names the reader, and what decodes.
        batch_size: samples of a whole batch.
        start: the position of the first sample.
        stop: the position after the last sample; the last batch may be smaller.
        rank: which contiguous share of each batch to read.
        workers: the number of shares.
        default: reads if ``data`` names no reader.

    Raises:
        UserError: ``data`` asks for Ray Data and Ray is not connected. While iterating: an image that cannot be
            decoded, or a file that cannot be read.
    """
    if (data.reader or default) == "threads":
        return thread_batches(stream, batch_size, start, stop, rank, workers)
    import ray

    if not ray.is_initialized():
        raise UserError("data.reader is ray, and this process has no connection to Ray: remove it, or connect first")
    return ray_batches(stream, batch_size, start, stop, rank, workers, decode=data.decode, nodes=data.reader_nodes)
