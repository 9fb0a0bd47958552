"""Several sources in one order: the source of each position, and how many samples it has delivered before.

Closed form: source 0 has floor(p · share) of the first p positions, and the other sources divide the rest in the same
way. Every range of positions therefore has the sources in proportion, and no process has to count from the start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Mixture:
    """Sources mixed in fixed shares.

    Attributes:
        shares: positive weights of the sources. Fractions, because rounding would move a source's positions.
    """

    shares: tuple[Fraction, ...]

    def owners(self, start: int, stop: int) -> Indices:
        """The source of each position start ≤ p < stop."""
        owners = np.full(stop - start, len(self.shares) - 1, dtype=np.int64)
        unassigned = np.arange(stop - start)
        base = start
        for source, part in enumerate(self._parts()):
            # Python integers: a position times a numerator can exceed int64. Only the differences go into numpy.
            counts = [(base + i) * part.numerator // part.denominator for i in range(len(unassigned) + 1)]
            taken = np.diff(np.array([count - counts[0] for count in counts])) > 0
            owners[unassigned[taken]] = source
            unassigned = unassigned[~taken]
            base -= base * part.numerator // part.denominator
        return owners

    def counts(self, position: int) -> tuple[int, ...]:
        """How many of the first ``position`` positions each source has."""
        counts = []
        for part in self._parts():
            counts.append(position * part.numerator // part.denominator)
            position -= counts[-1]
        return (*counts, position)

    def _parts(self) -> list[Fraction]:
        """For each source except the last, its share of what the sources before it leave."""
        return [share / sum(self.shares[i:]) for i, share in enumerate(self.shares[:-1])]


def mixture(rows: Sequence[int], weights: Sequence[float]) -> Mixture:
    """The mixture of datasets.

    Args:
        rows: number of samples of each dataset.
        weights: how often a sample of the dataset occurs for each occurrence of a sample with weight 1.
    """
    exact = [Fraction(str(weight)) for weight in weights]
    return Mixture(tuple(weight * count for weight, count in zip(exact, rows, strict=True)))
