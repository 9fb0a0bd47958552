"""Windows of row groups that samples are read from: each is read once, and the last few are kept."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from siclip.data.captions import choose_caption, stable_id
from siclip.data.config import CaptionPolicy
from siclip.data.order import RowGroup, Window
from siclip.data.unique import arranged, tail
from siclip_platform.datasets.parquet import parquet_file
from siclip_platform.storage import in_threads
from siclip_platform.stream.source import StreamSource
from siclip_platform.stream.stored import StoredGroup, StoredPair

Indices = npt.NDArray[np.int64]
EMBEDDINGS = "embeddings"
# Columns of rows that travel between processes, beside the dataset's own.
NUMBER = "number"
PIXELS = "pixels"
CAPTION_SET = "captions of set "
STORED = "stored "
FALSE_CAPTIONS = "false captions"


@dataclass(frozen=True)
class Sample:
    """A row of a source in one epoch.

    Attributes:
        id: the sample's id.
        image: the file's bytes; None if images are not read or have been decoded.
        captions: the dataset's own, then those of the caption sets.
        epoch: the source's epoch.
        number: the row's index in the split, in file order.
        embeddings: the row group's stored embeddings, and the row's index in them; None if they are not read.
        pixels: the decoded and augmented image, bytes of a (size, size, 3) array; None if it is not decoded yet.
        negatives: the false captions of each caption; empty if they are not read.
    """

    id: str
    image: memoryview | None
    captions: Sequence[dict[str, str | None]]
    epoch: int
    number: int
    embeddings: tuple[StoredGroup, int] | None = None
    pixels: memoryview | None = None
    negatives: Sequence[Sequence[dict[str, str]]] = ()

    def stored(self, caption: int, seed: int) -> StoredPair | None:
        """Return what is stored of it with the caption of this index; None if embeddings are not read."""
        if self.embeddings is None:
            return None
        group, row = self.embeddings
        return group.pair(row, caption, seed, self.epoch, self.id)


class Group:
    """Rows as Arrow arrays: those of a row group, or those that another process has read.

    Attributes:
        columns: the fields that were read, by name; the arrays hold one value per row.
        captions: the captions of each caption set.
        stored: the stored embeddings; None if they are not read.
        negatives: the false captions of each caption; None if they are not read.
    """

    def __init__(
        self, columns: Mapping[str, Any], captions: Sequence[Any], stored: StoredGroup | None, negatives: Any = None
    ) -> None:
        self.columns = columns
        self.captions = captions
        self.stored = stored
        self.negatives = negatives

    @classmethod
    def read(cls, source: StreamSource, group: RowGroup, fields: Sequence[str]) -> Group:
        """Read a row group; ``fields`` as in `Rows`."""
        own = [name for name in fields if name != EMBEDDINGS]
        with parquet_file(source.shards[group.shard]) as file:
            table = file.read_row_group(group.index, columns=own)
        where = (source.split, group.shard, group.index)
        captions = [_array(sidecar.read(*where), "captions") for sidecar in source.captions]
        stored = negatives = None
        # elsewhere only ids and captions matter
        if {"image", EMBEDDINGS} & set(fields):
            stored, negatives = source.embeddings, source.negatives
        return cls(
            {name: _array(table, name) for name in own},
            captions,
            StoredGroup.read(stored, *where) if stored else None,
            _array(negatives.read(*where), "negatives") if negatives else None,
        )

    def __len__(self) -> int:
        return len(self.columns["id"])

    def sample(self, row: int, epoch: int, number: int) -> Sample:
        """Return a row; ``epoch`` and ``number`` as in `Sample`."""
        return Sample(
            id=self.columns["id"][row].as_py(),
            image=self._bytes("image", row),
            pixels=self._bytes(PIXELS, row),
            captions=list(chain(*(column[row].as_py() for column in (self.columns["captions"], *self.captions)))),
            epoch=epoch,
            number=number,
            embeddings=(self.stored, row) if self.stored else None,
            negatives=self.negatives[row].as_py() if self.negatives is not None else (),
        )

    def _bytes(self, name: str, row: int) -> memoryview | None:
        """A binary value as a view of Arrow's memory, which decoders read without a copy."""
        column = self.columns.get(name)
        return None if column is None else memoryview(column[row].as_buffer()).cast("B")

    def table(self, rows: int) -> pa.Table:
        """Return the first rows as one table, from which `of_table` makes a group again."""
        columns = dict(self.columns)
        columns |= {f"{CAPTION_SET}{number}": column for number, column in enumerate(self.captions)}
        if self.stored is not None:
            columns |= {f"{STORED}{name}": column for name, column in self.stored.columns.items()}
        if self.negatives is not None:
            columns[FALSE_CAPTIONS] = self.negatives
        return pa.table(columns).slice(0, rows)

    @classmethod
    def of_table(cls, table: pa.Table | pa.RecordBatch) -> Group:
        """Return the group of a table's rows; that of a record batch copies nothing."""
        names = table.schema.names

        def named(prefix: str) -> dict[str, Any]:
            return {name.removeprefix(prefix): _array(table, name) for name in names if name.startswith(prefix)}

        stored = named(STORED)
        own = [name for name in names if not name.startswith((CAPTION_SET, STORED, FALSE_CAPTIONS))]
        captions = named(CAPTION_SET)
        return cls(
            {name: _array(table, name) for name in own},
            [captions[str(number)] for number in range(len(captions))],
            StoredGroup(stored) if stored else None,
            _array(table, FALSE_CAPTIONS) if FALSE_CAPTIONS in names else None,
        )


def _array(table: Any, name: str) -> Any:
    column = table.column(name)
    if isinstance(column, pa.Array):
        return column
    # combining copies, also a single chunk
    return column.chunk(0) if column.num_chunks == 1 else _combined(column)


def _combined(column: pa.ChunkedArray) -> pa.Array:
    array = column.combine_chunks()
    return array.chunk(0) if isinstance(array, pa.ChunkedArray) else array


class Rows:
    """The rows of a window in file order.

    ``fields`` are names of `siclip_platform.datasets.schema`. The source's stored embeddings are read with
    ``"image"`` or `EMBEDDINGS`.
    """

    def __init__(self, source: StreamSource, window: Window, fields: Sequence[str]) -> None:
        self.source = source
        self.window = window
        self._groups = list(in_threads(lambda group: Group.read(source, group, fields), window.groups, source.folder))
        # the window's row at which each row group starts
        self._starts = np.cumsum([0, *(group.rows for group in window.groups)])

    def __getitem__(self, row: int) -> Sample:
        which = int(np.searchsorted(self._starts, row, side="right")) - 1
        index = row - int(self._starts[which])
        return self._groups[which].sample(index, self.window.epoch, self._first(which) + index)

    @property
    def bytes(self) -> int:
        """The memory of the rows."""
        return sum(column.nbytes for group in self._groups for column in group.columns.values())

    def table(self, rows: Indices) -> pa.Table:
        """Return these rows as one table for `Group.of_table`, with their `Sample.number` as a further column."""
        tables, numbers = [], []
        for which, group in enumerate(self.window.groups):
            tables.append(self._groups[which].table(group.rows))
            numbers.append(np.arange(group.rows) + self._first(which))
        chosen = pa.concat_tables(tables).take(pa.array(rows))
        return chosen.append_column(NUMBER, pa.array(np.concatenate(numbers)[rows]))

    def _first(self, which: int) -> int:
        """The index in the split of the first row of one of the window's row groups."""
        group = self.window.groups[which]
        return self.source.first_rows[group.shard, group.index]

    def caption_ids(self, order: Indices, policy: CaptionPolicy) -> Indices:
        """Return the id of the caption that each of these rows gets."""
        samples = (self[int(row)] for row in order)
        return np.array([stable_id(caption_of(sample, policy, self.source.order.seed)[1]) for sample in samples])


def caption_of(sample: Sample, policy: CaptionPolicy, seed: int) -> tuple[int, str]:
    """Return index and text of the caption that a sample gets."""
    index = choose_caption(sample.captions, policy, seed, sample.epoch, sample.id)
    return index, str(sample.captions[index]["text"])


class LoadedWindow:
    """The samples of a window in the order of training.

    With ``unique``, a batch size, the order avoids the same caption twice in a batch of that size as far as possible.
    """

    def __init__(
        self, source: StreamSource, window: Window, fields: Sequence[str], policy: CaptionPolicy, unique: int = 0
    ) -> None:
        self.rows = Rows(source, window, fields)
        self.policy = policy
        self.unique = unique

    def samples(self, start: int, stop: int) -> list[Sample]:
        """Return the samples start ≤ i < stop of the window."""
        return [self.rows[int(row)] for row in self.order[start:stop]]

    @cached_property
    def order(self) -> Indices:
        """The window's rows in the order of training."""
        source, window = self.rows.source, self.rows.window
        shuffled = source.order.rows_of(window)
        if not self.unique:
            return shuffled
        # of the windows before only ids and captions are read, so that reading can start anywhere
        before = {int(i) for ids in _tails_before(source, window, self.policy, self.unique) for i in ids}
        captions = self.rows.caption_ids(shuffled, self.policy)
        return shuffled[arranged(captions, window.position, self.unique, before)]


def _tails_before(source: StreamSource, window: Window, policy: CaptionPolicy, batch_size: int) -> Iterator[Indices]:
    """The captions that precede a window in the batch of its first sample."""
    begin = window.position - window.position % batch_size
    while window.position > begin:
        window = source.order.window_at(window.position - 1)
        shuffled = source.order.rows_of(window)
        captions = Rows(source, window, ("id", "captions")).caption_ids(shuffled, policy)
        yield captions[tail(captions, window.position, batch_size)]


class WindowSamples(Protocol):
    """A window whose samples are or will be in memory."""

    def samples(self, start: int, stop: int) -> list[Sample]:
        """Return the samples start ≤ i < stop of the window, in the order of training."""


class SampleWindows(Protocol):
    """Where a stream gets its windows from; thread-safe."""

    def get(self, source: int, window: Window, following: Callable[[], Window] | None = None) -> WindowSamples:
        """Return a window of the source with this index; ``following`` names the one that is needed after it."""


class Windows:
    """A cache of windows; thread-safe. A window is loaded when it is first requested."""

    def __init__(self, load: Callable[[int, Window], LoadedWindow], kept: int, ahead: bool = False) -> None:
        """
        Args:
            load: reads a window of the source with this index.
            kept: how many of the last used windows stay in memory.
            ahead: load the window after each requested one in the background.
        """
        self.load = load
        self.kept = kept
        self.ahead = ahead
        # guards the map alone: a window is loaded outside of it, so that others can be found meanwhile
        self._lock = threading.Lock()
        self._found: OrderedDict[tuple[int, int, int], Future[LoadedWindow]] = OrderedDict()

    def get(self, source: int, window: Window, following: Callable[[], Window] | None = None) -> LoadedWindow:
        """Return a window of the source with this index; ``following`` names the one to load ahead."""
        future, mine = self._claim(source, window)
        if mine:
            if self.ahead and following is not None:
                self._in_background(source, following())
            self._fill(future, source, window)
        return future.result()

    def _claim(self, source: int, window: Window) -> tuple[Future[LoadedWindow], bool]:
        """The window's future, and whether the caller has to fill it."""
        key = (source, window.epoch, window.index)
        with self._lock:
            known = self._found.get(key)
            if known is not None:
                self._found.move_to_end(key)
                return known, False
            future: Future[LoadedWindow] = Future()
            self._found[key] = future
            # a thread that still waits for a removed window has its future
            while len(self._found) > self.kept:
                self._found.popitem(last=False)
            return future, True

    def _fill(self, future: Future[LoadedWindow], source: int, window: Window) -> None:
        try:
            loaded = self.load(source, window)
            # computed here, in the loading thread, and not by the first one that waits for the window
            _ = loaded.order
            future.set_result(loaded)
        except BaseException as error:
            future.set_exception(error)

    def _in_background(self, source: int, window: Window) -> None:
        future, mine = self._claim(source, window)
        if mine:
            threading.Thread(target=self._fill, args=(future, source, window), daemon=True).start()
