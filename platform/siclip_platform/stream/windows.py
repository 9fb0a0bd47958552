"""Windows of row groups that samples are read from: each is read once, and the last few are kept."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple

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


@dataclass(frozen=True)
class Sample:
    """A row of a source in one epoch.

    Attributes:
        id: the sample's id.
        image: the file's bytes; None if images are not read.
        captions: the dataset's own, then those of the caption sets.
        epoch: the source's epoch.
        number: the row's index in the split, in file order.
        embeddings: the row group's stored embeddings, and the row's index in them; None if they are not read.
    """

    id: str
    image: memoryview | None
    captions: Sequence[dict[str, str | None]]
    epoch: int
    number: int
    embeddings: tuple[StoredGroup, int] | None = None

    def stored(self, caption: int, seed: int) -> StoredPair | None:
        """Return what is stored of it with the caption of this index; None if embeddings are not read."""
        if self.embeddings is None:
            return None
        group, row = self.embeddings
        return group.pair(row, caption, seed, self.epoch, self.id)


class Rows:
    """The rows of a window in file order.

    ``fields`` are names of `siclip_platform.datasets.schema`. The source's stored embeddings are read with
    ``"image"`` or `EMBEDDINGS`.
    """

    def __init__(self, source: StreamSource, window: Window, fields: Sequence[str]) -> None:
        self.source = source
        self.window = window
        read = in_threads(lambda group: _read(source, group, fields), window.groups, source.folder)
        self._columns = [group.columns for group in read]
        self._captions = [group.captions for group in read]
        self._stored = [group.stored for group in read if group.stored is not None]
        # the window's row at which each row group starts
        self._starts = np.cumsum([0, *(group.rows for group in window.groups)])

    def __getitem__(self, row: int) -> Sample:
        which = int(np.searchsorted(self._starts, row, side="right")) - 1
        group, columns = self.window.groups[which], self._columns[which]
        index = row - int(self._starts[which])
        # a view of Arrow's memory: decoders read it without a copy
        image = columns.get("image")
        return Sample(
            id=columns["id"][index].as_py(),
            image=None if image is None else memoryview(image[index].as_buffer()).cast("B"),
            captions=list(
                chain(*(column[index].as_py() for column in (columns["captions"], *self._captions[which])))
            ),
            epoch=self.window.epoch,
            number=self.source.first_rows[group.shard, group.index] + index,
            embeddings=(self._stored[which], index) if self._stored else None,
        )

    def caption_ids(self, order: Indices, policy: CaptionPolicy) -> Indices:
        """Return the id of the caption that each of these rows gets."""
        samples = (self[int(row)] for row in order)
        return np.array([stable_id(caption_of(sample, policy, self.source.order.seed)[1]) for sample in samples])


def caption_of(sample: Sample, policy: CaptionPolicy, seed: int) -> tuple[int, str]:
    """Return index and text of the caption that a sample gets."""
    index = choose_caption(sample.captions, policy, seed, sample.epoch, sample.id)
    return index, str(sample.captions[index]["text"])


class _Group(NamedTuple):
    """What is read of one row group: its columns, and what the caption sets and the embedding set have of it."""

    columns: dict[str, Any]
    captions: list[Any]
    stored: StoredGroup | None


def _read(source: StreamSource, group: RowGroup, fields: Sequence[str]) -> _Group:
    own = [name for name in fields if name != EMBEDDINGS]
    with parquet_file(source.shards[group.shard]) as file:
        table = file.read_row_group(group.index, columns=own)
    columns = {name: table[name].combine_chunks() for name in own}
    columns = {name: c.chunk(0) if isinstance(c, pa.ChunkedArray) else c for name, c in columns.items()}
    where = (source.split, group.shard, group.index)
    captions = [sidecar.read(*where)["captions"].combine_chunks() for sidecar in source.captions]
    stored = source.embeddings if {"image", EMBEDDINGS} & set(fields) else None
    return _Group(columns, captions, StoredGroup(stored, *where) if stored else None)


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
