"""Pareto fronts of quality and cost."""

from __future__ import annotations

from collections.abc import Sequence


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the points (cost, gain) that no other point dominates, from the lowest cost up.

    A point dominates another if its cost is no higher and its gain no lower, and one of the two is better. Equal
    points are all kept.
    """
    front: list[int] = []
    best = float("-inf")
    # By cost, then best first: a point is on the front exactly if it beats every cheaper one.
    for index in sorted(range(len(points)), key=lambda each: (points[each][0], -points[each][1])):
        cost, gain = points[index]
        if gain > best or (front and points[front[-1]] == (cost, gain)):
            front.append(index)
            best = gain
    return front
