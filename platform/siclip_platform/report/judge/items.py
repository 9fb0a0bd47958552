"""The uncertainty that the choice of items leaves: a paired bootstrap over the images of an evaluation.

It covers which images were drawn, not what another seed of the training would change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from siclip.evaluation.bootstrap import Statistic, paired_differences
from siclip_platform.report.read.items import Items, ModelItems

TEXT_TO_IMAGE, IMAGE_TO_TEXT, MEAN = "image_retrieval_recall@1", "text_retrieval_recall@1", "mean_recall@1"


@dataclass(frozen=True)
class ItemGap:
    """One model minus another on the same items.

    Attributes:
        mean: Difference of the metric.
        low: Lower end of its 95 % bootstrap interval over images.
        high: Upper end of it.
        first: The metric of the first model.
        second: The metric of the other.
        images: Number of images.
        queries: Number of queries that the metric counts.
        split: The split that the images are from.
    """

    mean: float
    low: float
    high: float
    first: float
    second: float
    images: int
    queries: int
    split: str


def item_gap(items: Items, one: str, other: str, metric: str) -> ItemGap | None:
    """``one`` − ``other``; None unless both models have outcomes and the metric is a recall at rank 1.

    Args:
        items: The outcomes.
        one: Key of the first model.
        other: Key of the other.
        metric: Full name of the metric; its split must be that of the items.
    """
    split, _, name = metric.partition("/")
    if split != items.split or not {one, other} <= items.models.keys():
        return None
    first, second = (_statistics(items, items.models[key]) for key in (one, other))
    if name not in first:
        return None
    images = len(items.captions)
    found = paired_differences({name: second[name]}, {name: first[name]}, images)[name]
    everything = np.arange(images)
    queries = {TEXT_TO_IMAGE: sum(items.captions), IMAGE_TO_TEXT: images, MEAN: sum(items.captions) + images}[name]
    values = (first[name](everything), second[name](everything))
    return ItemGap(found.value, found.low, found.high, *values, images, queries, split)


def _statistics(items: Items, model: ModelItems) -> Mapping[str, Statistic]:
    captions, texts, images = (np.array(each) for each in (items.captions, model.text_to_image, model.image_to_text))

    # Captions are resampled with their image, as `siclip.evaluation` does: they are no independent queries.
    def text_to_image(chosen: np.ndarray) -> float:
        return float(texts[chosen].sum() / captions[chosen].sum())

    def image_to_text(chosen: np.ndarray) -> float:
        return float(images[chosen].mean())

    return {
        TEXT_TO_IMAGE: text_to_image,
        IMAGE_TO_TEXT: image_to_text,
        MEAN: lambda chosen: (text_to_image(chosen) + image_to_text(chosen)) / 2,
    }
