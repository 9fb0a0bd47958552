"""Which items of a split a checkpoint gets right, so that models can be compared on the same items."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from siclip.evaluation.evaluate import embed
from siclip.evaluation.retrieval import retrieve
from siclip.models.finite import check_finite
from siclip_platform.storage import AnyPath
from siclip_platform.storage.checkpoints import read_model
from siclip_platform.stream import load_evaluation_set


@dataclass(frozen=True)
class ItemHits:
    """Outcomes at rank 1, an entry per image; fractions are expected values where scores tie.

    Attributes:
        captions: number of captions of the image.
        text_to_image: captions of the image whose first image is this one.
        image_to_text: whether the image's first caption is one of its own.
    """

    captions: tuple[int, ...]
    text_to_image: tuple[float, ...]
    image_to_text: tuple[float, ...]


def item_hits(checkpoint: str | AnyPath, data: str | AnyPath, split: str) -> ItemHits:
    """The outcomes of a checkpoint on all samples of a split, as `evaluate_checkpoint` measures it.

    Raises:
        UserError: the checkpoint or the dataset cannot be read, the model is not finite, or there is no such split.
    """
    model = read_model(checkpoint)
    check_finite(model, str(checkpoint))
    samples = load_evaluation_set(data, split, model.config)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = retrieve(*embed(model.to(device), samples, device=device, name=str(checkpoint)), samples.image_of_text)
    owner, images = found.image_of_text, len(samples.images)
    return ItemHits(
        tuple(np.bincount(owner, minlength=images).tolist()),
        tuple(np.bincount(owner, weights=found.image_retrieval.hits(1), minlength=images).tolist()),
        tuple(found.text_retrieval.hits(1).tolist()),
    )
