"""CLIP's byte-pair tokenizer, as open_clip ships it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor


@lru_cache(maxsize=4)
def _tokenizer(context_length: int) -> Any:
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer(context_length=context_length)


# Captions recur in every epoch.
@lru_cache(maxsize=200_000)
def _ids(text: str, context_length: int) -> tuple[int, ...]:
    tokenizer = _tokenizer(context_length)
    if not _is_clean(text):
        ids: tuple[int, ...] = tuple(tokenizer([text])[0].tolist())
        return ids
    # Clean text needs only open_clip's whitespace and case rules: its repair steps take most of the time.
    words = tokenizer.pat.findall(" ".join(text.split()).lower())
    inner = [i for word in words for i in _word_ids(word)][: context_length - 2]
    padding = (0,) * (context_length - 2 - len(inner))
    return (tokenizer.sot_token_id, *inner, tokenizer.eot_token_id, *padding)


def _is_clean(text: str) -> bool:
    """Whether the tokenizer's repair of encodings and HTML would not change a text: plain printable ASCII."""
    return text.isascii() and text.isprintable() and "&" not in text


@lru_cache(maxsize=200_000)
def _word_ids(word: str) -> tuple[int, ...]:
    return tuple(_tokenizer(77).encode(word))


def tokenize(texts: str | Sequence[str], context_length: int = 77) -> Tensor:
    """Texts → token ids (len(texts), context_length), int64: start, text truncated to fit, end, zeros."""
    texts = [texts] if isinstance(texts, str) else texts
    return torch.tensor([_ids(text, context_length) for text in texts], dtype=torch.int64).view(
        len(texts), context_length
    )


def decode(ids: Sequence[int]) -> str:
    """The text of one row of token ids, lower-case and with single spaces, as the tokenizer normalised it."""
    tokenizer = _tokenizer(77)
    # The padding id 0 is also the token "!", so only the ids before the end token are text.
    row = list(ids)
    end = row.index(tokenizer.eot_token_id) if tokenizer.eot_token_id in row else len(row)
    text: str = tokenizer.decode([i for i in row[:end] if i != tokenizer.sot_token_id])
    return text.strip()
