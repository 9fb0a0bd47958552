from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from siclip.data.unique import arranged, tail


def batches(captions: list[int], order: list[int], position: int, size: int) -> list[list[int]]:
    """The captions of each batch that contains samples of the window."""
    found: dict[int, list[int]] = {}
    for offset, index in enumerate(order):
        found.setdefault((position + offset) // size, []).append(captions[index])
    return list(found.values())


windows = st.lists(st.integers(0, 12), min_size=1, max_size=60)


@given(windows, st.integers(0, 40), st.integers(2, 9), st.sets(st.integers(0, 12), max_size=8))
def test_the_order_is_a_permutation_that_ends_with_the_tail(
    captions: list[int], position: int, size: int, before: set[int]
) -> None:
    order = arranged(np.array(captions), position, size, before)
    assert sorted(order.tolist()) == list(range(len(captions)))
    end = tail(np.array(captions), position, size)
    assert order[len(order) - len(end) :].tolist() == end.tolist()


@st.composite
def separable_windows(draw: st.DrawFn) -> tuple[list[int], int, int]:
    """(captions, position, batch size) of a window with at least as many whole batches as any caption occurs."""
    size, position, whole = draw(st.integers(2, 9)), draw(st.integers(0, 40)), draw(st.integers(1, 5))
    length = -position % size + whole * size + draw(st.integers(0, size - 1))
    fewest = -(-length // whole)
    different = draw(st.integers(fewest, fewest + 4))
    return draw(st.permutations(list(range(different)) * whole))[:length], position, size


@given(separable_windows(), st.sets(st.integers(100, 104), max_size=4), st.data())
def test_no_batch_has_a_caption_twice_if_that_is_possible(
    window: tuple[list[int], int, int], before: set[int], data: st.DataObject
) -> None:
    """It is possible if no caption occurs more often than there are whole batches, and enough captions differ."""
    captions, position, size = window
    head = -position % size
    spare = len(set(captions)) - head - size if head else 0
    known = data.draw(st.sets(st.sampled_from(captions), max_size=max(0, spare)))
    order = arranged(np.array(captions), position, size, before | known if head else set())
    found = batches(captions, order.tolist(), position, size)
    assert all(len(set(batch)) == len(batch) for batch in found)
    if head:
        assert not known & set(found[0])


def test_an_order_without_repetitions_does_not_change() -> None:
    assert arranged(np.arange(50), 7, 8, set()).tolist() == list(range(50))


def test_captions_that_cannot_be_separated_are_spread_evenly() -> None:
    order = arranged(np.array([1, 1, 1, 1, 2, 3]), 0, 3, set())
    found = batches([1, 1, 1, 1, 2, 3], order.tolist(), 0, 3)
    assert [batch.count(1) for batch in found] == [2, 2]
