"""An order of a window's samples in which no batch has the same caption twice, as far as that is possible.

Batches are cut at multiples of the batch size, windows anywhere. The end of a window that begins a batch is chosen
from the window alone; the start of the next one avoids its captions. So the order of a window follows from its own
samples and those just before it, and reading can start anywhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from itertools import islice

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]


def tail(captions: Ids, position: int, batch_size: int) -> Ids:
    """Indices of the samples of a window that stand in the batch which its end cuts, in order.

    captions: (n,), an id per sample in their shuffled order; the first sample is at ``position``. All of them where
    the window lies within one batch.
    """
    length = (position + len(captions)) % batch_size
    if length >= len(captions):
        return np.arange(len(captions))
    seen: set[int] = set()
    chosen: list[int] = []
    spare: list[int] = []
    for index in range(len(captions) - 1, -1, -1):
        if len(chosen) == length:
            break
        caption = int(captions[index])
        (spare if caption in seen else chosen).append(index)
        seen.add(caption)
    chosen += spare[: length - len(chosen)]
    return np.array(sorted(chosen), dtype=np.int64)


def arranged(captions: Ids, position: int, batch_size: int, before: Collection[int]) -> Ids:
    """The order of a window's samples: a permutation of their indices.

    before: captions that stand in the batch of ``position`` already. A caption that the window holds more often than
    it has batches stays more than once in some of them.
    """
    end = tail(captions, position, batch_size)
    in_end = np.zeros(len(captions), dtype=bool)
    in_end[end] = True
    waiting = [int(i) for i in np.flatnonzero(~in_end)]
    counts = Counter(int(captions[i]) for i in waiting)
    order: list[int] = []
    while waiting:
        room = batch_size - (position + len(order)) % batch_size
        batches = 1 + -(-(len(waiting) - room) // batch_size) if len(waiting) > room else 1
        chosen = set(_batch(waiting, captions, counts, min(room, len(waiting)), batches, before))
        order += [i for i in waiting if i in chosen]
        counts.subtract(int(captions[i]) for i in chosen)
        waiting = [i for i in waiting if i not in chosen]
        before = ()
    return np.concatenate([np.array(order, dtype=np.int64), end])


def _batch(
    waiting: list[int], captions: Ids, counts: Counter[int], room: int, batches: int, before: Collection[int]
) -> list[int]:
    """Samples for the next of so many batches: first those that must go now to be spread evenly, then in order."""
    most = {caption: -(-count // batches) for caption, count in counts.items() if count >= batches}
    urgent = [i for i in waiting if int(captions[i]) in most] if most else []
    chosen: dict[int, None] = {}
    taken = Counter({caption: counts[caption] for caption in before})
    for index in (*urgent, *waiting):
        caption = int(captions[index])
        if len(chosen) < room and index not in chosen and taken[caption] < most.get(caption, 1):
            taken[caption] += 1
            chosen[index] = None
    left = (i for i in waiting if i not in chosen)
    return [*chosen, *islice(left, room - len(chosen))]
