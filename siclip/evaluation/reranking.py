"""Re-ranking with the pair-matching head: it reorders the candidates that the cosine ranks first.

Shapes: Q queries, N candidates, P right answers, D embed_dim.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from siclip.checkpoints.formats import checkpoint_config, read_checkpoint
from siclip.errors import UserError
from siclip.evaluation.ranks import Ranks, rank_candidates, ranks_of_scores
from siclip.evaluation.retrieval import Retrieval, captions_of_images
from siclip.losses.pair_matching import PairMatchingHead
from siclip.models.finite import finite

PREFIX = "pair_matching_head."
QUERIES_AT_ONCE = 256


def load_pair_head(path: Path | str) -> PairMatchingHead:
    """The pair-matching head from a checkpoint's training state, in eval mode.

    Raises:
        UserError: the file has no training state, or its run trained without pair matching.
    """
    content = read_checkpoint(path)
    training: dict[str, Any] = content["training"] or {}
    state = {
        name.removeprefix(PREFIX): value
        for name, value in training.get("objective", {}).items()
        if name.startswith(PREFIX)
    }
    if not state:
        why = "was trained without pair matching" if training else "has no training state"
        raise UserError(
            f"{path} {why}, so it has no pair-matching head: train with loss.pair_matching above 0 and name the "
            "checkpoint that the training wrote, or evaluate without the head"
        )
    head = PairMatchingHead("product" if "weight" in state else "mlp", checkpoint_config(content, path).embed_dim)
    head.load_state_dict(state)
    return head.eval()


@torch.no_grad()
def rerank(
    queries: Tensor, candidates: Tensor, right: Tensor, head: PairMatchingHead, *, top: int, queries_are_images: bool
) -> Ranks:
    """Ranks after the head has reordered the ``top`` candidates by cosine; the other candidates follow them.

    Among equal cosines at the cut-off, a fixed random order of the candidates decides.

    Args:
        queries: (Q, D).
        candidates: (N, D).
        right: (Q, P) indices of right answers, padded with -1.
        head: the pair-matching head.
        top: number of candidates per query that the head scores.
        queries_are_images: otherwise the queries are texts.
    """
    plain = rank_candidates(queries, candidates, right)
    top = min(top, len(candidates))
    # Ties at the cut-off must not be decided by the order of the candidates, which often follows the queries.
    shuffled = torch.randperm(len(candidates), generator=torch.Generator().manual_seed(0))
    position = torch.empty_like(shuffled)
    position[shuffled] = torch.arange(len(shuffled))
    own = torch.where(right >= 0, position[right.clamp(min=0)], right)
    mixed, parts = candidates[shuffled], []
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        rows = slice(start, start + QUERIES_AT_ONCE)
        found = (queries[rows] @ mixed.T).topk(top, dim=1).indices
        parts.append(_by_head(queries[rows], mixed, found, own[rows], plain, rows, head, queries_are_images))
    return Ranks.joined(parts)


def rerank_retrieval(
    image: Tensor, text: Tensor, image_of_text: Tensor, head: PairMatchingHead, top: int
) -> Retrieval:
    """`siclip.evaluation.retrieval.retrieve` with both directions re-ranked; shapes are the same."""
    captions = captions_of_images(image_of_text, len(image))
    return Retrieval(
        rerank(text, image, image_of_text.unsqueeze(1), head, top=top, queries_are_images=False),
        rerank(image, text, captions, head, top=top, queries_are_images=True),
        image_of_text.numpy(),
    )


def _by_head(
    queries: Tensor,
    candidates: Tensor,
    found: Tensor,
    right: Tensor,
    plain: Ranks,
    rows: slice,
    head: PairMatchingHead,
    queries_are_images: bool,
) -> Ranks:
    count, top = found.shape
    mine = queries.unsqueeze(1).expand(-1, top, -1).reshape(count * top, -1)
    other = candidates[found.reshape(-1)]
    logits = head(mine, other) if queries_are_images else head(other, mine)
    logits = finite(logits, "the pair-matching head").view(count, top)
    is_right = (found.unsqueeze(2) == right.unsqueeze(1)).any(dim=2)
    kept = is_right.any(dim=1).numpy()
    columns = torch.where(is_right, torch.arange(top), -1).sort(dim=1, descending=True).values
    # Any index is valid here: rows without a right answer among the top keep their plain rank.
    columns[~is_right.any(dim=1)] = 0
    new = ranks_of_scores(logits, columns)
    # A right answer that ties at the cut-off and was not selected ranks behind all that were.
    passed = np.clip(top - plain.greater[rows], 0, plain.tied[rows])
    behind = Ranks(plain.greater[rows] + passed, plain.tied[rows] - passed, plain.right[rows])
    names = ("greater", "tied", "right")
    return Ranks(*(np.where(kept, getattr(new, name), getattr(behind, name)) for name in names))
