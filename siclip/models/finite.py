"""The check that a model is finite: one whose embeddings are not has no result, only figures that look like one.

Its training diverged, or its file is damaged. Metrics of such embeddings are at chance, and a search over them would
still have a best trial.
"""

from __future__ import annotations

import torch
from torch import Tensor

from siclip.errors import UserError
from siclip.models.clip import Clip
from siclip.models.freezing import eval_mode

# bf16 keeps 8 bits, so that unit embeddings computed in it are off by up to 0.004
TOLERANCE = 0.01


class NotFinite(UserError):
    """A model's outputs are not finite."""


def unit(embeddings: Tensor, what: str) -> Tensor:
    """Return normalised embeddings (N, D) unchanged.

    Args:
        embeddings: of N inputs.
        what: names the model, for the message.

    Raises:
        NotFinite: an embedding has not unit length. Normalising makes zero of one whose length overflows.
    """
    lengths = torch.linalg.vector_norm(embeddings.float(), dim=-1)
    # written so that nan is refused too
    _refuse(~((lengths - 1).abs() < TOLERANCE), what)
    return embeddings


def finite(scores: Tensor, what: str) -> Tensor:
    """Return scores, of any shape, unchanged; arguments and errors as `unit`."""
    _refuse(~scores.isfinite().flatten(), what)
    return scores


@torch.no_grad()
def check_finite(model: Clip, what: str) -> None:
    """Encode a grey image and an empty text, before anything that takes longer.

    Args:
        model: its mode is preserved.
        what: names it, for the message.

    Raises:
        NotFinite: see `unit`.
    """
    size, device = model.config.image.image_size, model.logit_scale.device
    # end of text, the highest id: there a text is read. Not from the tokenizer, as some vocabularies are smaller.
    tokens = torch.zeros(1, model.config.text.context_length, dtype=torch.int64, device=device)
    tokens[0, 1] = model.config.text.vocab_size - 1
    with eval_mode(model):
        unit(model.encode_image(torch.full((1, 3, size, size), 0.5, device=device), normalize=True), what)
        unit(model.encode_text(tokens, normalize=True), what)


def _refuse(wrong: Tensor, what: str) -> None:
    count = int(wrong.sum())
    if count:
        raise NotFinite(
            f"{what} is not finite: {count} of {len(wrong)} outputs are infinite, nan or zero, so it has no result. "
            "Its training diverged or its file is damaged: name another checkpoint, or train with a lower learning "
            "rate"
        )
