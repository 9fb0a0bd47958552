"""How the next token is drawn: nucleus sampling (arXiv 1904.09751) with draws that depend on the image alone.

Shapes: R rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, model_validator
from torch import Tensor

from siclip.config import LARGEST_CONTEXT, Config
from siclip.data.captions import stable_id

LIKELIEST = 256  # tokens tried first: sorting the whole vocabulary takes longer
Draws = npt.NDArray[np.float64]
"""(R, max_tokens) in [0, 1)"""


class Sampling(Config):
    """How the next token is drawn.

    Attributes:
        top_p: draw from the smallest set of tokens with this probability.
        temperature: of the distribution; 0 takes the most likely token.
        min_tokens: of a caption, without start and end.
        max_tokens: of a caption, without start and end.
        seed: determines every draw together with the image's id and the caption's number.
    """

    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    temperature: Annotated[float, Field(ge=0, le=1e6)] = 1.0
    min_tokens: int = Field(4, ge=0, le=LARGEST_CONTEXT)
    max_tokens: int = Field(30, ge=1, le=LARGEST_CONTEXT)
    seed: int = Field(0, ge=0, lt=2**64)

    @model_validator(mode="after")
    def _lengths_agree(self) -> Sampling:
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens {self.min_tokens} is above max_tokens {self.max_tokens}")
        return self


def draws(sampling: Sampling, ids: Sequence[str], per_image: int) -> Draws:
    """Return uniform numbers (len(ids) · per_image, max_tokens) that depend only on (seed, id, caption number)."""
    keys = (stable_id(f"caption/{sampling.seed}/{name}/{number}") for name in ids for number in range(per_image))
    return np.stack([np.random.default_rng(key).random(sampling.max_tokens) for key in keys])


def pick(logits: Tensor, uniforms: Tensor, sampling: Sampling) -> Tensor:
    """Logits (R, V), draws (R,) in [0, 1) → token ids (R,): the inverse distribution function of the nucleus."""
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    distribution = (logits / sampling.temperature).softmax(dim=-1)
    shares, order = distribution.topk(min(LIKELIEST, logits.shape[-1]), dim=-1)
    chosen = _in_nucleus(shares, order, uniforms, sampling.top_p)
    # Rows whose nucleus has more tokens than were tried; only they are sorted.
    wide = (shares.sum(dim=-1) < sampling.top_p).nonzero()[:, 0]
    if len(wide):
        shares, order = distribution[wide].sort(dim=-1, descending=True, stable=True)
        chosen[wide] = _in_nucleus(shares, order, uniforms[wide], sampling.top_p)
    return chosen


def _in_nucleus(shares: Tensor, order: Tensor, uniforms: Tensor, top_p: float) -> Tensor:
    """Shares (R, V), the largest first, and their tokens (R, V) → token ids (R,)."""
    ends = shares.cumsum(dim=-1)
    # A token is in the nucleus while the more likely ones have less than top_p.
    nucleus = (ends - shares) < top_p
    mass = torch.where(nucleus, shares, 0).sum(dim=-1)
    index = (ends <= (uniforms * mass)[:, None]).sum(dim=-1)
    # Rounding of the cumulative sum can lead past the last token of the nucleus.
    index = torch.minimum(index, nucleus.sum(dim=-1) - 1)
    return order.gather(1, index[:, None])[:, 0]
