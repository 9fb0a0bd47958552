from __future__ import annotations

import string

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer

from siclip.tokenizer import tokenize

TEXTS = st.one_of(
    st.text(max_size=60),
    st.text(string.printable, max_size=60),
    st.text("aBz 's't09.<|>-&;ltgt\t", max_size=60),
    st.lists(st.sampled_from(["a", "dog's", "<end_of_text>", "12", "&amp;", "café", "it'll", "--"]), max_size=90).map(
        " ".join
    ),
)


@settings(max_examples=300, deadline=None)
@given(TEXTS, st.sampled_from([8, 20, 77]))
def test_ids_equal_open_clips(text: str, length: int) -> None:
    assert torch.equal(tokenize(text, length), SIMPLE(text, context_length=length))


@pytest.mark.parametrize("texts", [[], ["a cat", "a dog"]])
def test_each_text_has_one_row(texts: list[str]) -> None:
    assert tokenize(texts, 20).shape == (len(texts), 20)


SIMPLE = SimpleTokenizer()
