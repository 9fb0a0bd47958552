"""Compositionality: is an image closer to its true caption than to a similar false one?

The kinds of false captions (swap_att, replace_obj, …) come from the evaluation set. Ties count as chance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from siclip.evaluation.bootstrap import Statistic
from siclip.evaluation.ranks import Floats, Ints, ranks_of_scores

Score = Callable[[Tensor, Tensor], Tensor]
"""Unit embeddings of images (M, D) and of captions (M, D) → a score (M,) of how well they match."""


def cosine(image: Tensor, text: Tensor) -> Tensor:
    """The `Score` of unit embeddings (M, D) by their inner product."""
    return (image * text).sum(dim=-1)


@dataclass(frozen=True)
class CompositionItem:
    """An image, its true caption, and its false captions by kind; all as indices."""

    image: int
    true: int
    false: tuple[tuple[str, tuple[int, ...]], ...]


def composition_statistics(
    items: Sequence[CompositionItem], image: Tensor, text: Tensor, score: Score = cosine, prefix: str = ""
) -> dict[str, Statistic]:
    """Metrics as functions of the indices of items.

    - ``accuracy_KIND``: share of items whose true caption scores above all false ones of that kind.
    - ``accuracy``: the mean over kinds.
    - ``beats_all_negatives``: share of items whose true caption scores above all false captions.

    An item without false captions (of a kind) is excluded.

    Args:
        items: the set.
        image, text: unit embeddings (I, D) and (T, D), to which the items' indices refer.
        score: scores a pair: the cosine, or a pair-matching head.
        prefix: of the metric names.
    """
    kinds = sorted({kind for item in items for kind, _ in item.false})
    right = {kind: np.full(len(items), np.nan) for kind in kinds}
    all_right = np.empty(len(items))
    for index, item in enumerate(items):
        for kind, false in item.false:
            if false:
                right[kind][index] = _chance_of_right(item, false, image, text, score)
        every = tuple(caption for _, false in item.false for caption in false)
        all_right[index] = _chance_of_right(item, every, image, text, score) if every else np.nan

    def mean(found: Floats) -> Statistic:
        return lambda units: _mean_of_known(found[units])

    by_kind = {f"{prefix}accuracy_{kind}": mean(found) for kind, found in right.items()}
    return {
        f"{prefix}accuracy": lambda units: float(np.nanmean([known(units) for known in by_kind.values()])),
        f"{prefix}beats_all_negatives": mean(all_right),
        **by_kind,
    }


def winoground_statistics(
    items: Sequence[tuple[CompositionItem, CompositionItem]],
    image: Tensor,
    text: Tensor,
    score: Score = cosine,
    prefix: str = "",
) -> dict[str, Statistic]:
    """Text, image and group score of Winoground (arXiv 2204.03162), over pairs of items with swapped captions.

    Text: both images score higher with their own caption. Image: both captions score higher with their own image.
    Group: both. As in the paper, a tie is wrong. Arguments as `composition_statistics`.
    """
    outcome = np.zeros((3, len(items)))
    for index, (first, second) in enumerate(items):
        pairs = [(a.image, b.true) for a in (first, second) for b in (first, second)]
        rows, columns = (torch.tensor(side) for side in zip(*pairs, strict=True))
        s00, s01, s10, s11 = score(image[rows], text[columns]).tolist()
        by_text, by_image = s00 > s01 and s11 > s10, s00 > s10 and s11 > s01
        outcome[:, index] = by_text, by_image, by_text and by_image

    def mean(found: Floats) -> Statistic:
        return lambda units: float(found[units].mean())

    names = ("text_score", "image_score", "group_score")
    return {f"{prefix}{name}": mean(found) for name, found in zip(names, outcome, strict=True)}


def jaccard_statistics(cues: Sequence[tuple[Tensor, Tensor, Ints]]) -> dict[str, Statistic]:
    """WinoGAViL (arXiv 2207.12576) as in DataComp.

    The score of a cue with m associated images is the Jaccard index of these and the m most similar candidates.
    ``avg_jaccard_score`` is over all cues, ``jaccard_score_5-6`` over those with at most 6 candidates and
    ``jaccard_score_10-12`` over those with at least 10.

    Args:
        cues: for each cue its embedding (D,), those of its candidates (n, D), and which are associated (n,). Ties go
            to the later candidates, because the reference sorts ascending and stably.
    """
    sizes = np.array([len(right) for _, _, right in cues])
    scores = np.empty(len(cues))
    for index, (text, candidates, right) in enumerate(cues):
        associated = set(np.flatnonzero(right).tolist())
        similarity = (candidates * text).sum(dim=-1).numpy()
        chosen = set(np.argsort(similarity, kind="stable")[-len(associated) :].tolist())
        scores[index] = len(associated & chosen) / len(associated | chosen)

    def mean(of: np.ndarray) -> Statistic:
        return lambda units: _mean_of_known(np.where(of, scores, np.nan)[units])

    return {
        "avg_jaccard_score": mean(sizes > 0),
        "jaccard_score_5-6": mean(sizes <= 6),
        "jaccard_score_10-12": mean(sizes >= 10),
    }


def _chance_of_right(
    item: CompositionItem, false: tuple[int, ...], image: Tensor, text: Tensor, score: Score
) -> float:
    captions = text[[item.true, *false]]
    scores = score(image[item.image].expand_as(captions), captions).unsqueeze(0)
    return float(ranks_of_scores(scores, torch.zeros(1, 1, dtype=torch.int64)).hits(1)[0])


def _mean_of_known(found: Floats) -> float:
    known = found[~np.isnan(found)]
    return float(known.mean()) if len(known) else float("nan")
