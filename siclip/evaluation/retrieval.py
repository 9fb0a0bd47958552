"""Retrieval and compositionality metrics on unit embeddings.

Shapes: I images, T captions, N samples, K false captions per image, D embed_dim. Ties are handled as in
`siclip.evaluation.ranks`: metrics are expected values under random tie-breaking, so that constant embeddings are at
chance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from siclip.evaluation.bootstrap import Statistic
from siclip.evaluation.ranks import NONE, Floats, Ints, Ranks, rank_candidates, ranks_of_scores

RECALL_AT = (1, 5, 10)
DIRECTIONS = ("image_retrieval", "text_retrieval")


@dataclass(frozen=True)
class Retrieval:
    """Ranks in both directions.

    Attributes:
        image_retrieval: for each caption, the rank of its image.
        text_retrieval: for each image, the rank of its best caption.
        image_of_text: (T,), the image of each caption.
    """

    image_retrieval: Ranks
    text_retrieval: Ranks
    image_of_text: Ints

    def statistics(self, prefix: str = "") -> dict[str, Statistic]:
        """Metrics as functions of the indices of images, for `siclip.evaluation.bootstrap`.

        Recall@1/5/10, ``mrr`` and ``median_rank`` of both directions, and ``mean_recall@1``. Captions are resampled
        with their image; the candidates are always the complete set.
        """
        texts = captions_of_images(torch.from_numpy(self.image_of_text), len(self.text_retrieval)).numpy()
        image = _direction(self.image_retrieval, f"{prefix}image_retrieval", texts)
        text = _direction(self.text_retrieval, f"{prefix}text_retrieval", None)
        firsts = (image[f"{prefix}image_retrieval_recall@1"], text[f"{prefix}text_retrieval_recall@1"])
        return {**image, **text, f"{prefix}mean_recall@1": lambda units: (firsts[0](units) + firsts[1](units)) / 2}


def retrieve(image: Tensor, text: Tensor, image_of_text: Tensor | None = None) -> Retrieval:
    """Search in both directions, in chunks.

    Args:
        image: (I, D).
        text: (T, D).
        image_of_text: (T,), index of each caption's image; None: caption i describes image i.

    Raises:
        ValueError: an image has no caption.
    """
    owner = torch.arange(len(text)) if image_of_text is None else image_of_text.cpu()
    owner = owner.to(image.device)
    return Retrieval(
        rank_candidates(text, image, owner.unsqueeze(1)),
        rank_candidates(image, text, captions_of_images(owner, len(image))),
        owner.cpu().numpy(),
    )


def retrieval_metrics(image: Tensor, text: Tensor, image_of_text: Tensor | None = None) -> dict[str, float]:
    """Recall@1/5/10, MRR and median rank in both directions, and ``mean_recall@1``; arguments as `retrieve`."""
    return values(retrieve(image, text, image_of_text).statistics(), len(image))


def values(statistics: Mapping[str, Statistic], units: int) -> dict[str, float]:
    """The values of metrics on the whole set of ``units`` samples."""
    everything = np.arange(units)
    return {name: statistic(everything) for name, statistic in statistics.items()}


def captions_of_images(image_of_text: Tensor, images: int) -> Tensor:
    """(images, P): indices of each image's captions in order, padded with -1."""
    counts = torch.bincount(image_of_text, minlength=images)
    order = torch.argsort(image_of_text, stable=True)
    column = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts)[image_of_text[order]]
    captions = torch.full((images, int(counts.max())), NONE, device=order.device)
    captions[image_of_text[order], column] = order
    return captions


def true_caption_ranks(image: Tensor, text: Tensor, negatives: Tensor) -> Ranks:
    """The rank of each true caption among itself and the image's false captions.

    Args:
        image, text: (N, D).
        negatives: false captions (N, K, D).
    """
    captions = torch.cat([text.unsqueeze(1), negatives], dim=1)
    # One sum per score instead of a matrix product, whose rounding depends on the position: equal captions must tie.
    scores = (image.unsqueeze(1) * captions).sum(dim=-1)
    return ranks_of_scores(scores, torch.zeros(len(image), 1, dtype=torch.int64, device=image.device))


def beats_all_negatives(image: Tensor, text: Tensor, negatives: Tensor) -> float:
    """Share of images that are closer to their caption than to every false one; arguments as `true_caption_ranks`."""
    return float(true_caption_ranks(image, text, negatives).hits(1).mean())


def _direction(ranks: Ranks, name: str, captions: Ints | None) -> dict[str, Statistic]:
    per_query = {f"{name}_recall@{k}": ranks.hits(k) for k in RECALL_AT} | {f"{name}_mrr": ranks.reciprocal()}
    expected = ranks.expected()

    def chosen(units: Ints) -> Ints:
        queries = units if captions is None else captions[units].ravel()
        return queries[queries >= 0]

    def mean(found: Floats) -> Statistic:
        return lambda units: float(found[chosen(units)].mean())

    means = {key: mean(found) for key, found in per_query.items()}
    return means | {f"{name}_median_rank": lambda units: float(np.median(expected[chosen(units)]))}
