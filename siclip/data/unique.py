"""An order of a window's samples in which no batch has the same caption twice, as far as possible.

Batches end at multiples of the batch size, windows anywhere. The tail of a window, which begins a batch, is chosen
from that window alone; the start of the next window avoids the tail's captions. The order of a window therefore
depends only on its own samples and the tail before it, and reading can start anywhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from itertools import islice

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]


def tail(captions: Ids, position: int, batch_size: int) -> Ids:
    """Indices, in order, of a window's samples in the batch that extends beyond its end.

    All samples if the window is within one batch.

    Args:
        captions: (n,), the caption id of each sample in shuffled order.
        position: of the first sample.
        batch_size: samples per batch.
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

    A caption that occurs more often than the window has batches is repeated in some of them.

    Args:
        captions: (n,), the caption id of each sample in shuffled order.
        position: of the first sample.
        batch_size: samples per batch.
        before: captions of the samples before ``position`` in the same batch.
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
    """Samples for the next of the remaining ``batches``.

    Samples whose caption occurs at least once per remaining batch come first, so that they are spread evenly; the
    others follow in order.
    """
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
