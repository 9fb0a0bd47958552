"""Pareto fronts: what no other point beats in both quality and cost."""

from __future__ import annotations

from collections.abc import Sequence


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points (cost, gain) that no other beats: none has a cost as low and a gain as high, and one of
    them better. From the cheapest to the dearest; of equal points all are kept."""
    front: list[int] = []
    best = float("-inf")
    for index in sorted(range(len(points)), key=lambda place: (points[place][0], -points[place][1])):
        cost, gain = points[index]
        if gain > best or (front and points[front[-1]] == (cost, gain)):
            front.append(index)
            best = gain
    return front
