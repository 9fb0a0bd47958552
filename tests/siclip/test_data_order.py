from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from siclip.data.captions import choose_caption
from siclip.data.order import RowGroup, SampleOrder

groups = st.lists(st.integers(1, 9), min_size=1, max_size=8).map(
    lambda rows: [RowGroup(shard=i % 3, index=i, rows=n) for i, n in enumerate(rows)]
)


def delivered(order: SampleOrder, start: int, stop: int) -> list[tuple[int, int, int]]:
    """(epoch, row group, row) of every position, by reading the pieces."""
    samples = []
    for piece in order.pieces(start, stop):
        rows = [(piece.epoch, group.index, row) for group in piece.groups for row in range(group.rows)]
        samples += [rows[i] for i in order.rows_of(piece)]
    return samples


@given(groups, st.integers(0, 5), st.integers(1, 4))
def test_each_sample_exactly_once_an_epoch(row_groups: list[RowGroup], seed: int, window: int) -> None:
    order = SampleOrder(row_groups, seed, window)
    samples = delivered(order, 0, 2 * order.rows)
    every = sorted((group.index, row) for group in row_groups for row in range(group.rows))
    assert sorted(s[1:] for s in samples[: order.rows]) == every == sorted(s[1:] for s in samples[order.rows :])


@given(groups, st.data())
def test_any_stretch_is_a_slice_of_the_whole(row_groups: list[RowGroup], data: st.DataObject) -> None:
    order = SampleOrder(row_groups, seed=3, window_groups=2)
    whole = delivered(order, 0, 3 * order.rows)
    start = data.draw(st.integers(0, 3 * order.rows))
    stop = data.draw(st.integers(start, 3 * order.rows))
    assert delivered(order, start, stop) == whole[start:stop]


def test_seeds_and_epochs_have_orders_of_their_own() -> None:
    row_groups = [RowGroup(0, i, 10) for i in range(6)]
    first, second = (delivered(SampleOrder(row_groups, seed, 2), 0, 120) for seed in (0, 1))
    assert first != second
    assert [s[1:] for s in first[:60]] != [s[1:] for s in first[60:]]


CAPTIONS = [
    {"text": "o", "source": "original"},
    {"text": "a", "source": "synthetic"},
    {"text": "b", "source": "synthetic"},
]


def test_caption_shares_are_as_asked() -> None:
    chosen = [choose_caption(CAPTIONS, 0.3, 0, epoch, str(i)) for epoch in range(4) for i in range(1000)]
    shares = {text: chosen.count(text) / len(chosen) for text in "oab"}
    np.testing.assert_allclose([shares["o"], shares["a"], shares["b"]], [0.7, 0.15, 0.15], atol=0.025)


def test_caption_choice_depends_on_seed_epoch_and_sample_only() -> None:
    def draw(seed: int, epoch: int) -> list[str]:
        return [choose_caption(CAPTIONS, 0.5, seed, epoch, str(i)) for i in range(50)]

    assert draw(0, 0) == draw(0, 0)
    assert draw(0, 0) != draw(1, 0)
    assert draw(0, 0) != draw(0, 1)


def test_a_sample_with_one_kind_of_caption_gets_that_kind() -> None:
    assert choose_caption(CAPTIONS[:1], 1.0, 0, 0, "x") == "o"
    assert choose_caption(CAPTIONS[1:], 0.0, 0, 0, "x") in {"a", "b"}
