"""Run an iterator in a thread, so that reading continues while a step computes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import TypeVar

Item = TypeVar("Item")
_END = object()


class InBackground(Iterator[Item]):
    """The items of ``source`` in order, read by a thread that starts immediately and stays ``ahead`` items ahead.

    An exception in the source is raised at the position of the item it prevented.
    """

    def __init__(self, source: Iterator[Item], ahead: int = 2) -> None:
        self._items: queue.Queue[object] = queue.Queue(maxsize=ahead)
        self._ended = False
        # A daemon: the thread may be blocked on a full queue when its reader is abandoned.
        threading.Thread(target=self._draw, args=(source,), daemon=True).start()

    def _draw(self, source: Iterator[Item]) -> None:
        try:
            for item in source:
                self._items.put(item)
            self._items.put(_END)
        # Every exception: the reader would otherwise wait forever.
        except BaseException as error:
            self._items.put(_Failure(error))

    def __next__(self) -> Item:
        if self._ended:
            raise StopIteration
        item = self._items.get()
        if item is _END:
            self._ended = True
            raise StopIteration
        if isinstance(item, _Failure):
            self._ended = True
            raise item.error
        return item  # type: ignore[return-value]


class _Failure:
    def __init__(self, error: BaseException) -> None:
        self.error = error
