"""Pareto fronts compared with the definition."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from siclip_platform.report.judge.pareto import pareto_front


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=25))
def test_pareto_front_is_the_set_of_undominated_points(points: list[tuple[float, float]]) -> None:
    front = set(pareto_front(points))
    for index, (cost, gain) in enumerate(points):
        dominated = any(c <= cost and g >= gain and (c, g) != (cost, gain) for c, g in points)
        assert (index in front) is not dominated
