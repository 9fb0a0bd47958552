"""The pair-matching head as a second opinion: it re-ranks what the cosine puts first.

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

PREFIX = "pair_matching_head."
QUERIES_AT_ONCE = 256


def load_pair_head(path: Path | str) -> PairMatchingHead:
    """The pair-matching head in a checkpoint's training state, in eval mode.

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
        why = "was trained without pair matching" if training else "holds no training state"
        raise UserError(
            f"{path} {why}, so there is no pair-matching head to judge with: train with loss.pair_matching above 0 "
            "and name the checkpoint that training wrote, or leave the head out"
        )
    head = PairMatchingHead("product" if "weight" in state else "mlp", checkpoint_config(content, path).embed_dim)
    head.load_state_dict(state)
    return head.eval()


@torch.no_grad()
def rerank(
    queries: Tensor, candidates: Tensor, right: Tensor, head: PairMatchingHead, *, top: int, queries_are_images: bool
) -> Ranks:
    """Ranks after the head has put the ``top`` candidates by cosine into its own order; the others stay behind them.

    queries: (Q, D). candidates: (N, D). right: (Q, P) indices, padded with -1. Where equal cosines meet the cut, a
    fixed random order of the candidates decides who is in.
    """
    plain = rank_candidates(queries, candidates, right)
    top = min(top, len(candidates))
    shuffled = torch.randperm(len(candidates), generator=torch.Generator().manual_seed(0))
    place = torch.empty_like(shuffled)
    place[shuffled] = torch.arange(len(shuffled))
    own = torch.where(right >= 0, place[right.clamp(min=0)], right)
    mixed, parts = candidates[shuffled], []
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        rows = slice(start, start + QUERIES_AT_ONCE)
        found = (queries[rows] @ mixed.T).topk(top, dim=1).indices
        parts.append(_by_head(queries[rows], mixed, found, own[rows], plain, rows, head, queries_are_images))
    return Ranks.joined(parts)


def rerank_retrieval(
    image: Tensor, text: Tensor, image_of_text: Tensor, head: PairMatchingHead, top: int
) -> Retrieval:
    """`siclip.evaluation.retrieval.retrieve`, both directions re-ranked; shapes as there."""
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
    logits = (head(mine, other) if queries_are_images else head(other, mine)).view(count, top)
    is_right = (found.unsqueeze(2) == right.unsqueeze(1)).any(dim=2)
    kept = is_right.any(dim=1).numpy()
    places = torch.where(is_right, torch.arange(top), -1).sort(dim=1, descending=True).values
    places[~is_right.any(dim=1)] = 0  # any place will do: these keep their plain rank
    new = ranks_of_scores(logits, places)
    # A right answer that ties at the cut and was left out stands behind all that were taken.
    passed = np.clip(top - plain.greater[rows], 0, plain.tied[rows])
    behind = Ranks(plain.greater[rows] + passed, plain.tied[rows] - passed, plain.right[rows])
    names = ("greater", "tied", "right")
    return Ranks(*(np.where(kept, getattr(new, name), getattr(behind, name)) for name in names))
