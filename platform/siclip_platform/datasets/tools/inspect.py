"""Statistics of a dataset, without decoding images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from siclip_platform.datasets.importing.ledger import LEDGER
from siclip_platform.datasets.manifest import Dataset
from siclip_platform.datasets.parquet import parquet_file, read_table
from siclip_platform.datasets.sidecar import Sidecar
from siclip_platform.storage import AnyPath


@dataclass
class Spread:
    """Minimum, median, mean, 95th percentile and maximum of a number."""

    low: float
    median: float
    mean: float
    p95: float
    high: float

    @classmethod
    def of(cls, values: Any) -> Spread:
        numbers = np.asarray(values, float)
        if not len(numbers):
            return cls(*[float("nan")] * 5)
        low, median, p95, high = np.percentile(numbers, [0, 50, 95, 100])
        return cls(float(low), float(median), float(numbers.mean()), float(p95), float(high))


@dataclass
class SplitStatistics:
    """Statistics of one split.

    Attributes:
        rows: number of rows.
        bytes: size of the shards.
        shards: number of shards.
        captions: number of captions.
        sources: captions by source and model (``original``, ``synthetic: coca_ViT-L-14``).
        spreads: quantity → its distribution.
    """

    rows: int
    bytes: int
    shards: int
    captions: int
    sources: dict[str, int]
    spreads: dict[str, Spread] = field(default_factory=dict)


def summarize_split(dataset: Dataset, split: str) -> SplitStatistics:
    """Compute the statistics of a split: sizes, captions by source, caption lengths and numbers, image sides."""
    sources: Counter[str] = Counter()
    numbers: dict[str, list[Any]] = {}
    for path in dataset.shards(split):
        table = read_table(path, ["width", "height", "captions"])
        captions = table["captions"].combine_chunks()
        flat = pc.list_flatten(captions)
        texts, models = pc.struct_field(flat, "text"), pc.struct_field(flat, "model")
        for source, model in zip(pc.struct_field(flat, "source").to_pylist(), models.to_pylist(), strict=True):
            sources[f"{source}: {model}" if model else source] += 1
        found = {
            # Captions have single spaces, so words are spaces plus one.
            "words per caption": pc.add(pc.count_substring(texts, " "), 1),
            "characters per caption": pc.utf8_length(texts),
            "captions per image": pc.list_value_length(captions),
            "shorter side": pc.min_element_wise(table["width"], table["height"]),
            "longer side": pc.max_element_wise(table["width"], table["height"]),
        }
        for name, values in found.items():
            numbers.setdefault(name, []).append(np.asarray(values))
    entries = dataset.entries(split)
    return SplitStatistics(
        rows=dataset.rows(split),
        bytes=sum(entry.bytes for entry in entries),
        shards=len(entries),
        captions=sources.total(),
        sources=dict(sources.most_common()),
        spreads={name: Spread.of(np.concatenate(parts)) for name, parts in numbers.items()},
    )


def ledger_counts(folder: AnyPath) -> dict[str, int]:
    """Return the rejected rows by reason; empty without a ledger."""
    path = folder / LEDGER
    if not path.is_file():
        return {}
    counts = pc.value_counts(read_table(path, ["reason"])["reason"].combine_chunks())
    return {item["values"]: item["counts"] for item in sorted(counts.to_pylist(), key=lambda item: -item["counts"])}


def sample_rows(
    dataset: Dataset, split: str, count: int, beside: Sidecar | None = None, negatives: Sidecar | None = None
) -> Iterator[dict[str, Any]]:
    """Yield rows evenly spread over a split, always the same, with the captions of the sets beside it.

    Args:
        dataset: the dataset.
        split: of the rows.
        count: the number of rows.
        beside: a caption set, whose captions follow the dataset's own.
        negatives: a set of false captions, which follow as captions of source ``false``.
    """
    chosen = np.unique(np.linspace(0, max(dataset.rows(split) - 1, 0), min(count, dataset.rows(split))).astype(int))
    before = 0
    for shard, (path, entry) in enumerate(zip(dataset.shards(split), dataset.entries(split), strict=True)):
        here = [int(row) - before for row in chosen if before <= row < before + entry.rows]
        before += entry.rows
        if here:
            added = [_more(sidecar, split, shard) for sidecar in (beside, negatives) if sidecar is not None]
            yield from _rows(path, here, added)


def _more(sidecar: Sidecar, split: str, shard: int) -> Callable[[int], list[list[dict[str, Any]]]]:
    """A function of a row group: the captions that a sidecar adds to each of its rows."""

    def of(group: int) -> list[list[dict[str, Any]]]:
        column = sidecar.read(split, shard, group)[sidecar.manifest.kind].to_pylist()
        return [_false(row) for row in column] if sidecar.manifest.kind == "negatives" else column

    return of


def _false(row: list[list[dict[str, str]]]) -> list[dict[str, Any]]:
    return [
        {"text": false["text"], "source": "false", "model": f"false: {false['kind']}"}
        for each in row
        for false in each
    ]


def _rows(
    path: AnyPath, numbers: list[int], added: Sequence[Callable[[int], list[list[dict[str, Any]]]]]
) -> Iterator[dict[str, Any]]:
    """Yield rows of a shard with the captions that each of ``added`` has for a row group; only theirs are read."""
    with parquet_file(path) as file:
        start = 0
        for group in range(file.num_row_groups):
            stop = start + file.metadata.row_group(group).num_rows
            here = [number - start for number in numbers if start <= number < stop]
            if here:
                rows = file.read_row_group(group).take(pa.array(here)).to_pylist()
                columns = [read(group) for read in added]
                for number, row in zip(here, rows, strict=True):
                    more = chain.from_iterable(column[number] for column in columns)
                    yield row | {"captions": [*row["captions"], *more]}
            start = stop
