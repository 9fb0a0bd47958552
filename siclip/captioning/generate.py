"""Continuous batching: images enter the decoders as captions end, so that a batch stays full.

Shapes: N images, C captions of each; a row of the result is one caption.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from siclip.captioning.decoder import CachedDecoders
from siclip.captioning.sampling import Draws, Sampling, pick

Ids = npt.NDArray[np.int64]
ADMITTED = 8
"""New images enter when an eighth of the slots is free: each time costs a pass through all layers' projections."""


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the tokenizer: start, end, and the one that open_clip takes for padding."""

    start: int
    end: int
    pad: int


@torch.no_grad()
def generate(
    decoders: CachedDecoders,
    encode: Callable[[int, int], Tensor],
    uniforms: Draws,
    sampling: Sampling,
    special: SpecialTokens,
) -> Ids:
    """Return token ids (N·C, 1 + max_tokens + 1): start, tokens, end, zeros.

    Args:
        decoders: with empty slots.
        encode: (first, stop) → the embeddings (n, I, D) of those images; called in order.
        uniforms: (N·C, max_tokens) draws.
        sampling: how tokens are drawn.
        special: ids.
    """
    each, device = decoders.per_image, decoders.seen.device
    out = np.zeros((len(uniforms), sampling.max_tokens + 2), np.int64)
    out[:, 0] = special.start
    queue = _Queue(encode, len(uniforms) // each, decoders.slots)
    free, open_in = list(range(decoders.slots)), Counter[int]()
    # Per row in use: its caption, its cell, and the position of its last token.
    caption, cell, position = (np.zeros(0, np.int64) for _ in range(3))
    while len(caption) or queue.left:
        if queue.left and len(free) >= min(max(1, decoders.slots // ADMITTED), queue.left):
            first, embeddings = queue.take(len(free))
            slots = np.array([free.pop(0) for _ in range(len(embeddings))])
            decoders.admit(embeddings, torch.from_numpy(slots).to(device))
            open_in.update({int(slot): each for slot in slots})
            numbers = np.arange(each)
            caption = np.append(caption, (np.arange(first, first + len(slots))[:, None] * each + numbers).ravel())
            cell = np.append(cell, (slots[:, None] * each + numbers).ravel())
            position = np.append(position, np.zeros(each * len(slots), np.int64))
        token = out[caption, position]
        # open_clip's CoCa hides from the unimodal decoder every token that follows padding, so its weights expect it.
        seen = (position == 0) | (out[caption, position - 1] != special.pad)
        inputs = torch.from_numpy(np.stack([token, position, cell, seen])).to(device)
        longest, used = int(position.max()), int(cell.max()) // each + 1
        logits = decoders.step(inputs[0], inputs[1], inputs[2], inputs[3].bool(), longest, used)
        # The end token is excluded until the caption has its minimum length.
        short = torch.from_numpy(position < sampling.min_tokens).to(device)
        logits[:, special.end] = logits[:, special.end].masked_fill(short, -torch.inf)
        drawn = torch.from_numpy(uniforms[caption, position]).to(device, torch.float32)
        position = position + 1
        chosen = pick(logits, drawn, sampling).cpu().numpy()
        out[caption, position] = chosen
        over = (chosen == special.end) | (position == sampling.max_tokens)
        full = over & (chosen != special.end)
        out[caption[full], position[full] + 1] = special.end
        for slot in (cell[over] // each).tolist():
            open_in[slot] -= 1
            if not open_in[slot]:
                free.append(slot)
        # The lowest first: slots above the highest one in use cost nothing.
        free.sort()
        # Rows in use stay in front: the last ones fill the gaps.
        gaps, movers = _gaps(over)
        if len(movers):
            decoders.move(torch.from_numpy(movers).to(device), torch.from_numpy(gaps).to(device))
        for rows in (caption, cell, position):
            rows[gaps] = rows[movers]
        caption, cell, position = (rows[: int((~over).sum())] for rows in (caption, cell, position))
    return out


def _gaps(over: npt.NDArray[np.bool_]) -> tuple[Ids, Ids]:
    """Return the rows that ended among the first ones, and the rows behind that fill them."""
    staying = int((~over).sum())
    return np.flatnonzero(over[:staying]), staying + np.flatnonzero(~over[staying:])


class _Queue:
    """The embeddings of the images, computed for as many images at a time as there are slots."""

    def __init__(self, encode: Callable[[int, int], Tensor], images: int, size: int) -> None:
        self.encode, self.images, self.size = encode, images, size
        self.next = self.start = 0
        self.chunk: Tensor | None = None

    @property
    def left(self) -> int:
        return self.images - self.next

    def take(self, count: int) -> tuple[int, Tensor]:
        """Return the number of the next image and the embeddings (n, I, D) of at most ``count`` images from it."""
        if self.chunk is None or self.next == self.start + len(self.chunk):
            self.start = self.next
            # The old chunk is freed before the new one is computed.
            self.chunk = None
            self.chunk = self.encode(self.start, min(self.start + self.size, self.images))
        first, offset = self.next, self.next - self.start
        taken = self.chunk[offset : offset + count]
        self.next += len(taken)
        return first, taken
