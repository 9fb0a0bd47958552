"""Batches made by Ray Data tasks, on any machine of the cluster."""

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

TASKS = 1024  # of one Ray Data execution: it plans all of its tasks before the first


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
    """As `siclip_platform.stream.thread_batches`. Reading starts at once, in the background. Needs a connected Ray.

    ``nodes``: labels of the nodes that the tasks run on. What a lost node had made is made again, in its place.
    """
    ranges = shares(batch_size, start, stop, rank, workers)
    pieces = _executions(stream, ranges, nodes)
    sizes = (last - first for first, last in shares(batch_size, start, stop, rank, workers))
    return InBackground(Batch.from_arrays(columns).staged() for columns in regrouped(pieces, sizes))


def check_reader_nodes(nodes: Mapping[str, str]) -> None:
    """Make sure that a node of the connected cluster has these labels: without one, reading would wait for ever.

    Raises:
        UserError: there is none.
    """
    import ray

    if not any(nodes.items() <= node["Labels"].items() for node in ray.nodes() if node["Alive"]):
        wanted = ",".join(f"{name}={value}" for name, value in nodes.items())
        raise UserError(
            f"no node of the cluster has the labels of data.reader_nodes: start one with ray start --labels {wanted} "
            "or leave data.reader_nodes out"
        )


def _executions(
    stream: Stream, ranges: Iterator[Range], nodes: Mapping[str, str] | None
) -> Iterator[Mapping[str, Any]]:
    tasks = tasks_of(stream, ranges)
    while some := list(islice(tasks, TASKS)):
        dataset = ray_dataset(stream, some, nodes)
        yield from dataset.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=2)


def tasks_of(stream: Stream, ranges: Iterator[Range]) -> Iterator[list[Range]]:
    """Ranges together that are read from the same window of the first source; a range is cut where a window ends."""
    order, counts = stream.sources[0].order, stream.mixture.counts
    task: list[Range] = []
    window = None
    for first, stop in ranges:
        start = first
        while start < stop:
            here = order.window_at(counts(start)[0])
            end = _position_of(stream, here.position + here.rows, start, stop)
            if task and here != window:
                yield task
                task = []
            window = here
            task.append((start, end))
            start = end
    if task:
        yield task


def _position_of(stream: Stream, count: int, start: int, stop: int) -> int:
    """The first position in start < p ≤ stop before which the first source has given ``count`` samples, or stop."""
    low, high = start, stop
    while low < high:
        middle = (low + high) // 2
        if stream.mixture.counts(middle)[0] >= count:
            high = middle
        else:
            low = middle + 1
    return max(low, start + 1)


def ray_dataset(stream: Stream, tasks: Sequence[Sequence[Range]], nodes: Mapping[str, str] | None = None) -> Any:
    """A `ray.data.Dataset` of the samples at these positions, in order; what a task makes comes range by range."""
    import ray
    from ray.data import DataContext, TaskPoolStrategy

    def read(row: Mapping[str, Any]) -> Iterator[Columns]:
        windows = stream.windows()
        for start, stop in tasks[int(row["item"][0])]:
            yield stream.columns(start, stop, windows)

    context = DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    numbers = ray.data.from_items(list(range(len(tasks))), override_num_blocks=len(tasks))  # takes no tasks itself
    pool = TaskPoolStrategy(size=stream.concurrent_reads)
    return numbers.map_batches(
        read, batch_size=1, batch_format="numpy", num_cpus=DATA_CPUS, compute=pool,
        label_selector=dict(nodes) if nodes else None,
    )  # fmt: skip
