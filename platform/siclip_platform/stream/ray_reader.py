"""Read batches with Ray Data: tasks read windows, on any node, and the trainer's threads make batches of them.

A task sends image files as they are, about a tenth of their pixels' size, or with ``decode="reader"`` their pixels.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import pyarrow as pa

from siclip.data.batch import Batch
from siclip.data.order import Window
from siclip.errors import UserError
from siclip_platform.cluster.connect import DATA_CPUS
from siclip_platform.stream.columns import Range, shares
from siclip_platform.stream.parts import BLOCK_BYTES, Part, PartReader, parts_of
from siclip_platform.stream.stream import Stream
from siclip_platform.stream.threads import ThreadedBatches
from siclip_platform.stream.windows import NUMBER, Group, Sample

TASKS = 1024
"""Tasks of one Ray Data execution. Ray Data plans all of them before the first runs, so a run needs several."""
BYTES_AHEAD = 384 * 2**20
"""What the tasks of one reader may have in Ray's object store. One window in use and the next are usually less."""

Block = tuple[Part, int, Group]
"""(part, index of the block's first row in the part, rows)"""


def ray_batches(
    stream: Stream,
    batch_size: int,
    start: int,
    stop: int,
    rank: int = 0,
    workers: int = 1,
    *,
    decode: str = "trainer",
    nodes: Mapping[str, str] | None = None,
) -> Iterator[Batch]:
    """Read batches with at most ``stream.concurrent_reads`` Ray Data tasks, and as many threads of this process.

    Reading starts at once, in the background. The batches are those of
    `siclip_platform.stream.threads.thread_batches`. What a lost node had read is read again on another one, and the
    order stays the same. Ray must be connected.

    Args:
        stream: what to read.
        batch_size: samples of a whole batch.
        start: the position of the first sample.
        stop: the position after the last sample; the last batch may be smaller.
        rank: which contiguous share of each batch to read.
        workers: the number of shares.
        decode: ``trainer``: threads of this process decode; ``reader``: the tasks do, where the nodes that read have
            more cores than the one that trains.
        nodes: labels of the nodes that the tasks run on (default: any node).

    Raises:
        UserError: while iterating: an image that cannot be decoded, or a file that cannot be read.
    """
    decoder = stream.decoder if decode == "reader" else None
    reader = PartReader(stream.sources, stream.captions, stream.unique_batch, decoder)
    parts = parts_of(stream.sources, stream.mixture, batch_size, start, stop, rank, workers)
    blocks = _executions(reader, parts, stream.concurrent_reads, nodes)
    return received_batches(stream, list(shares(batch_size, start, stop, rank, workers)), blocks)


def received_batches(stream: Stream, ranges: Sequence[Range], blocks: Iterator[Block]) -> Iterator[Batch]:
    """Make one batch per range of positions from the blocks that tasks have read."""
    windows = ReceivedWindows(blocks)
    return ThreadedBatches(stream, ranges, windows, finished=windows.forget)


def check_reader_nodes(nodes: Mapping[str, str]) -> None:
    """Check that a node of the connected cluster has these labels; without one, reading would wait forever.

    Raises:
        UserError: no node has them.
    """
    import ray

    if not any(nodes.items() <= node["Labels"].items() for node in ray.nodes() if node["Alive"]):
        labels = ",".join(f"{name}={value}" for name, value in nodes.items())
        raise UserError(
            f"no node of the cluster has the labels of data.reader_nodes: start one with ray start --labels {labels} "
            "or remove data.reader_nodes"
        )


class ReceivedWindows:
    """The windows that tasks have sent, for the threads of one reader."""

    def __init__(self, blocks: Iterator[Block]) -> None:
        """
        Args:
            blocks: in the order of the parts.
        """
        self._blocks = blocks
        self._received: dict[tuple[int, int, int], list[Block]] = {}
        self._changing = threading.Lock()
        # only one thread waits for Ray at a time; those whose rows are here already do not wait for it
        self._waiting = threading.Lock()
        self._error: BaseException | None = None

    @property
    def held(self) -> tuple[tuple[int, int, int], ...]:
        """The windows with rows in memory, as `Part.key`."""
        return tuple(self._received)

    def get(self, source: int, window: Window, following: Any = None) -> _ReceivedWindow:
        """Return a window of the source with this index. What is read ahead is the tasks' business."""
        return _ReceivedWindow(self, (source, window.epoch, window.index))

    def samples(self, key: tuple[int, int, int], start: int, stop: int) -> list[Sample]:
        """Return the samples start ≤ i < stop of a window, and wait for them."""
        return [self._sample(key, sample) for sample in range(start, stop)]

    def forget(self, position: int) -> None:
        """Release the rows that are only needed before this position."""
        with self._changing:
            for key, blocks in list(self._received.items()):
                self._received[key] = [block for block in blocks if _stop_of(*block) > position]
                if not self._received[key]:
                    del self._received[key]

    def _sample(self, key: tuple[int, int, int], sample: int) -> Sample:
        while (found := self._find(key, sample)) is None:
            with self._waiting:
                if self._find(key, sample) is None:
                    self._receive()
        return found

    def _find(self, key: tuple[int, int, int], sample: int) -> Sample | None:
        for part, first, group in tuple(self._received.get(key, ())):
            row = part.row(sample) - first
            if 0 <= row < len(group):
                return group.sample(row, part.window.epoch, group.columns[NUMBER][row].as_py())
        return None

    def _receive(self) -> None:
        if self._error is not None:
            raise self._error
        try:
            block = next(self._blocks)
        except BaseException as error:
            # the other threads wait for rows that will not come
            self._error = _cause(error)
            raise self._error from None
        with self._changing:
            self._received.setdefault(block[0].key, []).append(block)


def _stop_of(part: Part, first: int, group: Group) -> int:
    """The position after which no row of a block is needed any more."""
    return part.stop_of(first + len(group) - 1)


def _cause(error: BaseException) -> BaseException:
    """The `UserError` that a task raised, without Ray's own lines around it, else the error itself."""
    if isinstance(error, StopIteration):
        return RuntimeError("Ray Data ended before all requested rows were read")
    found: BaseException | None = error
    while found is not None:
        if type(found) is UserError:
            return found
        found = getattr(found, "cause", None) or found.__cause__
    return error


class _ReceivedWindow:
    """A window of `ReceivedWindows`, with the interface of `siclip_platform.stream.windows.LoadedWindow`."""

    def __init__(self, windows: ReceivedWindows, key: tuple[int, int, int]) -> None:
        self._windows = windows
        self._key = key

    def samples(self, start: int, stop: int) -> list[Sample]:
        return self._windows.samples(self._key, start, stop)


def _executions(
    reader: PartReader, parts: Iterator[Part], concurrent: int, nodes: Mapping[str, str] | None
) -> Iterator[Block]:
    """Read the parts and yield their blocks, as `ReceivedWindows` takes them."""
    while some := list(islice(parts, TASKS)):
        dataset = part_dataset(reader, some, concurrent, nodes)
        batches = _record_batches(dataset)
        for part in some:
            received = 0
            while received < part.rows:
                batch = next(batches)
                yield part, received, Group.of_table(batch)
                received += batch.num_rows


def _record_batches(dataset: Any) -> Iterator[pa.RecordBatch]:
    # a block that Ray has joined from several consists of several record batches: cutting copies nothing
    for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1):
        yield from table.to_batches()


def part_dataset(
    reader: PartReader, parts: Sequence[Part], concurrent: int, nodes: Mapping[str, str] | None = None
) -> Any:
    """Return a `ray.data.Dataset` of the rows of these parts, in order; one task reads each."""
    import ray
    from ray.data import DataContext, ExecutionResources, TaskPoolStrategy

    context = DataContext.get_current()
    # tasks end in any order; batches must not
    context.execution_options.preserve_order = True
    context.execution_options.resource_limits = ExecutionResources.for_limits(object_store_memory=BYTES_AHEAD)
    context.enable_progress_bars = False
    # a block is sent when it is full, so that the first batch need not wait for a whole window
    context.target_max_block_size = BLOCK_BYTES
    # from_items needs no read tasks of its own; the numbers index ``parts``
    numbers = ray.data.from_items(list(range(len(parts))), override_num_blocks=len(parts))
    pool = TaskPoolStrategy(size=concurrent)
    labels = dict(nodes) if nodes else None
    form = {"batch_size": 1, "batch_format": "numpy"}
    return numbers.map_batches(reader.task(parts), **form, num_cpus=DATA_CPUS, compute=pool, label_selector=labels)
