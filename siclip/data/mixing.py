"""Several sources as one order: which source each position is of, and how far that source is then.

A closed form: source 0 has floor(p · share) of the first p positions, the others divide what is left in the same
way. So every stretch has its sources in proportion, and no process has to count from the start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Mixture:
    """``shares``: positive weights of the sources in exact numbers."""

    shares: tuple[Fraction, ...]

    def owners(self, start: int, stop: int) -> Places:
        """The source of each position start ≤ p < stop."""
        owners = np.full(stop - start, len(self.shares) - 1, dtype=np.int64)
        open_places = np.arange(stop - start)
        base = start
        for source, part in enumerate(self._parts()):
            counts = [(base + i) * part.numerator // part.denominator for i in range(len(open_places) + 1)]
            taken = np.diff(np.array([count - counts[0] for count in counts])) > 0
            owners[open_places[taken]] = source
            open_places = open_places[~taken]
            base -= base * part.numerator // part.denominator
        return owners

    def counts(self, position: int) -> tuple[int, ...]:
        """How many of the first ``position`` positions are of each source."""
        counts = []
        for part in self._parts():
            counts.append(position * part.numerator // part.denominator)
            position -= counts[-1]
        return (*counts, position)

    def _parts(self) -> list[Fraction]:
        """For each source but the last its share of what those before it leave."""
        return [share / sum(self.shares[i:]) for i, share in enumerate(self.shares[:-1])]


def mixture(rows: Sequence[int], weights: Sequence[float]) -> Mixture:
    """Sources of so many samples; a weight is how often a sample of it comes for one time at weight 1."""
    exact = [Fraction(str(weight)) for weight in weights]
    return Mixture(tuple(weight * count for weight, count in zip(exact, rows, strict=True)))
