"""Ranks with ties: how many wrong candidates score above the right one, and the metrics derived from that.

Every metric is its expected value under random tie-breaking, so that a model with the same score for every candidate
is at chance. Without ties it is the usual count. A nan score is the lowest.

Shapes: Q queries, N candidates, P right answers of a query at most, D dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
# 128 MiB of fp32 scores per chunk of queries.
SCORES_AT_ONCE = 2**25
NONE = -1


@dataclass(frozen=True)
class Ranks:
    """For each of Q queries, counts relative to the score of its best right answer.

    Attributes:
        greater: (Q,), wrong candidates with a higher score.
        tied: (Q,), wrong candidates with the same score.
        right: (Q,), right answers with the same score, at least 1.
    """

    greater: Ints
    tied: Ints
    right: Ints

    def __len__(self) -> int:
        return len(self.greater)

    def hits(self, k: int) -> Floats:
        """(Q,): the probability that a right answer is among the first k; 0 or 1 without ties."""
        # 1 − C(tied, left) / C(tied + right, left): all positions left for the tied group go to wrong candidates.
        left = np.clip(k - self.greater, 0, self.tied + self.right)
        certain = np.where(left > self.tied, 1.0, 0.0)
        unsure = (left > 0) & (left <= self.tied)
        total, tied = (self.tied + self.right)[unsure], self.tied[unsure]
        chance = 1 - np.exp(_log_choose(tied, left[unsure]) - _log_choose(total, left[unsure]))
        certain[unsure] = np.where(total - tied == 1, left[unsure] / total, chance)
        return certain

    def expected(self) -> Floats:
        """(Q,): the expected rank, from 1, of the first right answer."""
        expected: Floats = self.greater + (self.tied + self.right + 1) / (self.right + 1)
        return expected

    def reciprocal(self) -> Floats:
        """(Q,): the expected reciprocal of that rank; its mean is MRR."""
        values = 1 / (self.greater + 1.0)
        for row in np.flatnonzero(self.tied):
            tied, right = int(self.tied[row]), int(self.right[row])
            # The probability of each position, in the tied group, of the first right answer.
            positions = np.arange(1, tied + 2)
            chance = np.exp(_log_choose(tied + right - positions, right - 1) - _log_choose(tied + right, right))
            values[row] = (chance / (self.greater[row] + positions)).sum()
        return values

    @classmethod
    def joined(cls, parts: list[Ranks]) -> Ranks:
        """The ranks of all parts in order."""
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))


def ranks_of_scores(scores: Tensor, right: Tensor) -> Ranks:
    """Ranks from complete rows of scores.

    Args:
        scores: (Q, N).
        right: (Q, P) indices of right answers, padded with -1.

    Raises:
        ValueError: a query has no right answer.
    """
    if not bool((right >= 0).any(dim=1).all()):
        raise ValueError("every query needs a right answer")
    if bool(scores.min().isnan()):
        # Comparisons with nan are false, so a right answer with a nan score would rank first.
        scores = scores.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    mine = scores.gather(1, right.clamp(min=0)).masked_fill(right < 0, -torch.inf)
    best = mine.max(dim=1, keepdim=True).values
    equal_right = ((mine == best) & (right >= 0)).sum(dim=1).cpu().numpy()
    greater, equal = _count_rows(scores > best), _count_rows(scores == best)
    return Ranks(greater, equal - equal_right, equal_right)


def rank_candidates(queries: Tensor, candidates: Tensor, right: Tensor) -> Ranks:
    """Rank N candidates by their inner product with each of Q queries, for a chunk of queries at a time.

    At most 2**25 scores are in memory. Candidates with the same embedding always tie, even where a matrix product
    rounds them differently.

    Args:
        queries: (Q, D).
        candidates: (N, D).
        right: (Q, P) indices of candidates, padded with -1.
    """
    twins = _first_of_equals(candidates)
    rows = max(1, SCORES_AT_ONCE // max(1, len(candidates)))
    parts = []
    for start in range(0, len(queries), rows):
        scores = queries[start : start + rows] @ candidates.T
        if twins is not None:
            scores = scores[:, twins]
        parts.append(ranks_of_scores(scores, right[start : start + rows]))
    return Ranks.joined(parts)


def _count_rows(mask: Tensor) -> Ints:
    """Number of True entries per row. On the CPU by numpy, which is ten times as fast as torch's sum."""
    if mask.device.type != "cpu":
        return np.asarray(mask.sum(dim=1).cpu().numpy(), np.int64)
    return np.asarray(np.count_nonzero(mask.numpy(), axis=1), np.int64)


def _first_of_equals(rows: Tensor) -> Tensor | None:
    """For each row the index of the first row equal to it; None if all rows are different.

    Only rows whose bytes have the same hash are compared, so that no copy of all rows has to be sorted.
    """
    array = np.ascontiguousarray(rows.cpu().numpy())
    hashes = np.fromiter((hash(row.tobytes()) for row in array), np.int64, len(array))
    _, group, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    shared = np.flatnonzero(counts[group] > 1)
    if not len(shared):
        return None
    keys = array[shared].view(np.dtype((np.void, array.itemsize * array.shape[1]))).ravel()
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    firsts = np.arange(len(array))
    firsts[shared] = shared[first[inverse]]
    return torch.from_numpy(firsts).to(rows.device)


def _log_choose(n: Any, k: Any) -> Any:
    """The logarithm of the binomial coefficient n over k, by torch because numpy has no lgamma."""
    above, below = torch.from_numpy(np.asarray(n, np.float64)), torch.from_numpy(np.asarray(k, np.float64))
    return (torch.lgamma(above + 1) - torch.lgamma(below + 1) - torch.lgamma(above - below + 1)).numpy()
