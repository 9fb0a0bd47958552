from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siclip.data.order import RowGroup, SampleOrder, first_samples
from siclip.errors import UserError

groups = st.lists(st.integers(1, 9), min_size=1, max_size=8).map(
    lambda rows: [RowGroup(shard=i % 3, index=i, rows=n) for i, n in enumerate(rows)]
)


def delivered(order: SampleOrder, start: int, stop: int) -> list[tuple[int, int, int]]:
    """(epoch, row group, row) of every position, from the window slices."""
    samples = []
    for piece in order.pieces(start, stop):
        window = piece.window
        rows = [(window.epoch, group.index, row) for group in window.groups for row in range(group.rows)]
        samples += [rows[i] for i in order.rows_of(window)[piece.start : piece.stop]]
    return samples


@given(groups, st.integers(0, 5), st.integers(1, 4))
def test_each_sample_occurs_exactly_once_per_epoch(row_groups: list[RowGroup], seed: int, window: int) -> None:
    order = SampleOrder(row_groups, seed, window)
    samples = delivered(order, 0, 2 * order.rows)
    every = sorted((group.index, row) for group in row_groups for row in range(group.rows))
    assert sorted(s[1:] for s in samples[: order.rows]) == every == sorted(s[1:] for s in samples[order.rows :])


@given(groups, st.data())
def test_any_range_is_a_slice_of_the_whole_order(row_groups: list[RowGroup], data: st.DataObject) -> None:
    order = SampleOrder(row_groups, seed=3, window_groups=2)
    whole = delivered(order, 0, 3 * order.rows)
    start = data.draw(st.integers(0, 3 * order.rows))
    stop = data.draw(st.integers(start, 3 * order.rows))
    assert delivered(order, start, stop) == whole[start:stop]


def test_seeds_and_epochs_have_different_orders() -> None:
    row_groups = [RowGroup(0, i, 10) for i in range(6)]
    first, second = (delivered(SampleOrder(row_groups, seed, 2), 0, 120) for seed in (0, 1))
    assert first != second
    assert [s[1:] for s in first[:60]] != [s[1:] for s in first[60:]]


@given(groups, st.data())
def test_a_limit_is_a_nested_subset(row_groups: list[RowGroup], data: st.DataObject) -> None:
    rows = sum(group.rows for group in row_groups)
    larger = data.draw(st.integers(1, rows))
    smaller = data.draw(st.integers(1, larger))

    def samples(limit: int) -> set[tuple[int, int]]:
        return {(g.index, row) for g in first_samples(row_groups, limit) for row in range(g.rows)}

    assert len(samples(larger)) == larger and len(samples(smaller)) == smaller
    assert samples(smaller) <= samples(larger)
    assert samples(rows) == {(g.index, row) for g in row_groups for row in range(g.rows)}


def test_a_limit_above_the_samples_is_refused() -> None:
    with pytest.raises(UserError, match="limit 11 is above the 10 samples"):
        first_samples([RowGroup(0, 0, 10)], 11)
