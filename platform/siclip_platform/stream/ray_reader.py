"""Read batches with Ray Data tasks, on any node of the cluster."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from siclip.data.background import InBackground
from siclip.data.batch import Batch
from siclip.errors import UserError
from siclip_platform.cluster.connect import DATA_CPUS
from siclip_platform.stream.columns import Columns, Range, regrouped, shares
from siclip_platform.stream.stream import Stream

TASKS = 1024
"""Tasks of one Ray Data execution. Ray Data plans all of them before the first runs, so a run needs several."""


def ray_batches(
    stream: Stream,
    batch_size: int,
    start: int,
    stop: int,
    rank: int = 0,
    workers: int = 1,
    *,
    nodes: Mapping[str, str] | None = None,
) -> Iterator[Batch]:
    """Read batches with at most ``stream.concurrent_reads`` Ray Data tasks at a time.

    Reading starts at once, in the background. The batches are those of `siclip_platform.stream.thread_batches`. What
    a lost node had read is read again on another one, and the order stays the same. Ray must be connected.

    Args:
        stream: what to read.
        batch_size: samples of a whole batch.
        start: the position of the first sample.
        stop: the position after the last sample; the last batch may be smaller.
        rank: which contiguous share of each batch to read.
        workers: the number of shares.
        nodes: labels of the nodes that the tasks run on (default: any node).
    """
    blocks = _executions(stream, shares(batch_size, start, stop, rank, workers), nodes)
    sizes = (last - first for first, last in shares(batch_size, start, stop, rank, workers))
    return InBackground(Batch.from_arrays(columns).staged() for columns in regrouped(blocks, sizes))


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


def _executions(
    stream: Stream, ranges: Iterator[Range], nodes: Mapping[str, str] | None
) -> Iterator[Mapping[str, Any]]:
    tasks = tasks_of(stream, ranges)
    while some := list(islice(tasks, TASKS)):
        dataset = ray_dataset(stream, some, nodes)
        yield from dataset.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=2)


def tasks_of(stream: Stream, ranges: Iterator[Range]) -> Iterator[list[Range]]:
    """Group the ranges by the window of the first source that they need; a range is cut where a window ends.

    So a window is read by one task, not by every task that needs a part of it.
    """
    order, counts = stream.sources[0].order, stream.mixture.counts
    task: list[Range] = []
    window = None
    for first, stop in ranges:
        start = first
        while start < stop:
            current = order.window_at(counts(start)[0])
            end = _position_of(stream, current.position + current.rows, start, stop)
            if task and current != window:
                yield task
                task = []
            window = current
            task.append((start, end))
            start = end
    if task:
        yield task


def _position_of(stream: Stream, count: int, start: int, stop: int) -> int:
    """The first position start < p ≤ stop before which the first source has given ``count`` samples, else stop."""
    # a binary search: the counts never decrease
    low, high = start, stop
    while low < high:
        middle = (low + high) // 2
        if stream.mixture.counts(middle)[0] >= count:
            high = middle
        else:
            low = middle + 1
    return max(low, start + 1)


def ray_dataset(stream: Stream, tasks: Sequence[Sequence[Range]], nodes: Mapping[str, str] | None = None) -> Any:
    """Return a `ray.data.Dataset` of the samples at these positions, in order.

    Each inner sequence is read by one task, which yields a block per range.
    """
    import ray
    from ray.data import DataContext, TaskPoolStrategy

    def read(row: Mapping[str, Any]) -> Iterator[Columns]:
        windows = stream.windows()
        for start, stop in tasks[int(row["item"][0])]:
            yield stream.columns(start, stop, windows)

    context = DataContext.get_current()
    # tasks end in any order; batches must not
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    # from_items needs no read tasks of its own; the numbers index ``tasks``
    numbers = ray.data.from_items(list(range(len(tasks))), override_num_blocks=len(tasks))
    pool = TaskPoolStrategy(size=stream.concurrent_reads)
    labels = dict(nodes) if nodes else None
    form = {"batch_size": 1, "batch_format": "numpy"}
    return numbers.map_batches(read, **form, num_cpus=DATA_CPUS, compute=pool, label_selector=labels)
