"""The decoders with caches write, token for token, what open_clip's forward gives without them."""

from __future__ import annotations

from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from torch import Tensor

from siclip.captioning.decoder import CachedDecoders, check_decoders
from siclip.captioning.generate import Ids, SpecialTokens, generate
from siclip.captioning.sampling import Draws, Sampling, draws, pick
from siclip.errors import UserError

VOCABULARY, IMAGES = 40, 23
SPECIAL = SpecialTokens(start=38, end=39, pad=0)
TEXT = {"context_length": 20, "vocab_size": VOCABULARY, "width": 32, "heads": 2}
VISION = {
    **{"image_size": 16, "patch_size": 8, "layers": 1, "width": 16, "head_width": 8, "output_tokens": True},
    **{"attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 9},
}


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def coca(**text: Any) -> Any:
    """A CoCa whose small vocabulary makes it write the end token, and the one for padding, now and then."""
    torch.manual_seed(0)
    model = open_clip.CoCa(
        embed_dim=32,
        vision_cfg=VISION,
        text_cfg={**TEXT, "layers": 3, "embed_cls": True, "output_tokens": True, **text},
        multimodal_cfg={**TEXT, "layers": 2, "attn_pooler_heads": 2},
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval().requires_grad_(False)


def without_caches(model: Any, pixels: Tensor, uniforms: Draws, sampling: Sampling) -> list[list[int]]:
    """The captions by open_clip's forward over all tokens at every step; rows that have ended are cut afterwards."""
    image = torch.arange(len(uniforms)) // (len(uniforms) // len(pixels))
    tokens = torch.full((len(uniforms), 1), SPECIAL.start)
    for step in range(sampling.max_tokens):
        logits = model(pixels[image], tokens, output_labels=False)["logits"][:, -1]
        if step < sampling.min_tokens:
            logits[:, SPECIAL.end] = -torch.inf
        chosen = pick(logits, torch.from_numpy(uniforms[:, step]).float(), sampling)
        tokens = torch.cat([tokens, chosen[:, None]], dim=1)
    rows = [[*row, SPECIAL.end] for row in tokens.tolist()]
    return [row[: row.index(SPECIAL.end) + 1] for row in rows]


def with_caches(model: Any, pixels: Tensor, uniforms: Draws, sampling: Sampling, slots: int) -> Ids:
    each = len(uniforms) // len(pixels)
    decoders = CachedDecoders(model, slots, each, sampling.max_tokens, torch.float32)

    def encode(first: int, stop: int) -> Tensor:
        embeddings: Tensor = model(pixels[first:stop])["image_embs"]
        return embeddings

    return generate(decoders, encode, uniforms, sampling, SPECIAL)


@pytest.mark.parametrize(
    ("sampling", "slots", "per_image"),
    [
        ({"temperature": 0, "min_tokens": 0, "max_tokens": 12}, 5, 1),
        ({"temperature": 1, "min_tokens": 0, "max_tokens": 12}, 1, 3),
        ({"temperature": 1, "min_tokens": 0, "max_tokens": 12}, 5, 3),
        ({"temperature": 1, "min_tokens": 4, "max_tokens": 9, "top_p": 0.6}, 64, 2),
        ({"temperature": 0.5, "min_tokens": 8, "max_tokens": 8}, 7, 2),
        ({"temperature": 1, "min_tokens": 0, "max_tokens": 1}, 3, 2),
    ],
)
def test_tokens_are_those_without_caches(sampling: dict[str, Any], slots: int, per_image: int) -> None:
    model, settings = coca(), Sampling.model_validate(sampling)
    pixels = torch.randn(IMAGES, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    uniforms = draws(settings, [str(number) for number in range(IMAGES)], per_image)
    with torch.no_grad():
        expected = without_caches(model, pixels, uniforms, settings)
    found = with_caches(model, pixels, uniforms, settings, slots)
    assert found.shape == (IMAGES * per_image, settings.max_tokens + 2)
    for row, caption in zip(found.tolist(), expected, strict=True):
        assert row == caption + [0] * (len(row) - len(caption))
    lengths = {len(caption) - 2 for caption in expected}
    if settings.temperature == 1 and settings.max_tokens == 12:
        # The case is what it is meant to be: some captions end early, some are cut, some contain padding.
        assert min(lengths) < 4 and max(lengths) == 12 and any(0 in caption for caption in expected)


def test_a_batch_stays_full() -> None:
    """New images enter while others are unfinished: fewer steps than one batch after the other would take."""
    model, settings = coca(), Sampling(min_tokens=0, max_tokens=12)
    pixels = torch.randn(IMAGES, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    uniforms = draws(settings, [str(number) for number in range(IMAGES)], 1)
    decoders = CachedDecoders(model, 4, 1, 12, torch.float32)
    rows: list[int] = []
    step = decoders.step

    def counted(tokens: Tensor, *arguments: Any) -> Tensor:
        rows.append(len(tokens))
        return step(tokens, *arguments)

    decoders.step = counted  # type: ignore[method-assign]
    found = generate(
        decoders, lambda first, stop: model(pixels[first:stop])["image_embs"], uniforms, settings, SPECIAL
    )
    lengths = (found == SPECIAL.end).argmax(axis=1).clip(max=12)
    # Every token of a caption costs one row of one step, and nothing else does.
    assert sum(rows) == lengths.sum()
    apart = sum(max(lengths[first : first + 4]) for first in range(0, IMAGES, 4))
    assert len(rows) < apart and np.mean(rows) > 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ({"no_causal_mask": True}, "is not causal"),
        ({"embed_cls": False}, "has no class token"),
        ({"qk_norm": True}, "has blocks of type 'custom'"),
    ],
)
def test_a_text_tower_that_caches_would_change_is_refused(text: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=f"m: its text tower .*{words}"):
        check_decoders(coca(**text), "m")
