"""How well a pair-matching head tells true pairs from false ones: a head that always says yes, or no, scores ½.

Shapes: N images, D embed_dim, K false captions of an image.
"""

from __future__ import annotations

import torch
from torch import Tensor

from siclip.losses import PairMatchingHead
from siclip.models.freezing import eval_mode

ROWS = 1024
"""Images whose cosines with all captions are in memory at a time."""


@torch.no_grad()
def pair_head_metrics(
    head: PairMatchingHead, image: Tensor, text: Tensor, negatives: Tensor | None = None
) -> dict[str, float]:
    """Accuracies of a head's logit being above 0 for true pairs, and at most 0 for false ones.

    - ``pair_head_true``: of the true pairs.
    - ``pair_head_mined``: of each image with the most similar caption of another image; a caption whose embedding is
      that of the image's own does not count as false.
    - ``pair_head_generated``: of each image with each of its false captions, if there are any.
    - ``pair_head_balanced_accuracy``: the mean of the first and of the mean of the others. ½ for a head whose
      answer does not depend on the pair.

    Args:
        head: the head.
        image: (N, D), L2-normalised, at least 2.
        text: (N, D), L2-normalised; row i matches image i.
        negatives: (N, K, D), L2-normalised.
    """
    with eval_mode(head):
        accuracies = {
            "true": _share(head(image, text) > 0),
            "mined": _share(head(image, text[_mined(image, text)]) <= 0),
        }
        if negatives is not None:
            logits = head(image.repeat_interleave(negatives.shape[1], dim=0), negatives.flatten(0, 1))
            accuracies["generated"] = _share(logits <= 0)
    false = [value for name, value in accuracies.items() if name != "true"]
    balanced = (accuracies["true"] + sum(false) / len(false)) / 2
    return {f"pair_head_{name}": value for name, value in (accuracies | {"balanced_accuracy": balanced}).items()}


def _mined(image: Tensor, text: Tensor) -> Tensor:
    """(N,) the index of the caption most similar to each image, among those that are not its own."""
    found = []
    for start in range(0, len(image), ROWS):
        rows = slice(start, start + ROWS)
        # Equal texts have equal embeddings up to rounding in another batch.
        same = text[rows] @ text.T > 1 - 1e-5
        found.append((image[rows] @ text.T).masked_fill(same, -torch.inf).argmax(dim=1))
    return torch.cat(found)


def _share(right: Tensor) -> float:
    return float(right.double().mean())
