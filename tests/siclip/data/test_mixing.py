from __future__ import annotations

from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from siclip.data.mixing import Mixture, mixture

shares = st.lists(st.fractions(Fraction(1, 10_000), 10**9, max_denominator=10_000), min_size=1, max_size=4)


@given(shares, st.integers(0, 10**12), st.integers(0, 300))
def test_counts_are_the_sums_of_owners(parts: list[Fraction], start: int, length: int) -> None:
    mixed = Mixture(tuple(parts))
    owners = mixed.owners(start, start + length)
    before, after = mixed.counts(start), mixed.counts(start + length)
    assert sum(before) == start
    assert [b - a for a, b in zip(before, after, strict=True)] == np.bincount(owners, minlength=len(parts)).tolist()


@given(shares, st.integers(1, 10**9))
def test_every_range_from_the_start_is_in_proportion(parts: list[Fraction], position: int) -> None:
    for count, part in zip(Mixture(tuple(parts)).counts(position), parts, strict=True):
        assert abs(count - position * part / sum(parts)) < len(parts)


def test_weights_determine_how_often_a_sample_occurs() -> None:
    assert mixture([100, 50], [1.0, 1.0]).counts(150) == (100, 50)
    assert mixture([100, 50], [1.0, 2.0]).counts(200) == (100, 100)
    assert mixture([100, 50, 50], [1.0, 0.5, 1.0]).counts(175) == (100, 25, 50)
    assert np.diff(np.flatnonzero(mixture([90, 10], [1.0, 1.0]).owners(0, 1000) == 1)).max() <= 11
