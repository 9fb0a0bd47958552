"""Retrieval and composition metrics on unit embeddings.

Shapes: N pairs, K false captions per image, D embed_dim. Ties count against the model, so constant embeddings
score 0, never 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

RECALL_AT = (1, 5, 10)


def ranks(similarity: Tensor) -> Tensor:
    """Rank, from 1, of the right answer (the diagonal) among each row of (N, N)."""
    return (similarity >= similarity.diagonal().unsqueeze(1)).sum(dim=1)


def retrieval_metrics(image: Tensor, text: Tensor) -> dict[str, float]:
    """Recall@1/5/10 in both directions over N pairs with one right answer each; image, text: (N, D).

    ``image_retrieval``: a text looks for its image. ``text_retrieval``: an image looks for its text.
    """
    similarity = image.double() @ text.double().T
    metrics = {}
    for name, rank in (("image_retrieval", ranks(similarity.T)), ("text_retrieval", ranks(similarity))):
        for k in RECALL_AT:
            metrics[f"{name}_recall@{k}"] = (rank <= k).double().mean().item()
    metrics["mean_recall@1"] = (metrics["image_retrieval_recall@1"] + metrics["text_retrieval_recall@1"]) / 2
    return metrics


def beats_all_negatives(image: Tensor, text: Tensor, negatives: Tensor) -> float:
    """Share of images that are closer to their caption than to every false one.

    image, text: (N, D); negatives: (N, K, D).
    """
    right = (image * text).sum(dim=-1, keepdim=True)
    wrong = torch.einsum("nd,nkd->nk", image, negatives)
    return (right > wrong).all(dim=1).double().mean().item()
