from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siclip.errors import UserError
from siclip.models import create_model, enumerate_patterns, parse_pattern
from siclip.models.sharing import PARTS

BELL = {1: 1, 2: 2, 3: 5, 4: 15, 5: 52}


@pytest.mark.parametrize("blocks", BELL)
def test_patterns_are_all_partitions_exactly_once(blocks: int) -> None:
    patterns = list(enumerate_patterns(blocks, parts=("qk",)))
    partitions = {
        frozenset(frozenset(i for i in range(blocks) if labels[i] == label) for label in set(labels))
        for labels in itertools.product(range(blocks), repeat=blocks)
    }
    assert len(partitions) == BELL[blocks] == len(patterns) == len(set(map(str, patterns)))


@given(st.integers(1, 6), st.data())
def test_every_enumerated_pattern_reads_back(blocks: int, data: st.DataObject) -> None:
    pattern = data.draw(st.sampled_from(list(enumerate_patterns(blocks))))
    assert parse_pattern(str(pattern), blocks) == pattern


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("qk", "no ':'"),
        ("kq:0-0", "unknown part 'kq'"),
        ("qk:0-0-0", "3 numbers for 2 blocks"),
        ("qk:1-0", "'0-1'"),
        ("qk:a-b", "not numbers"),
        ("qk:0--1", "not numbers"),
        ("qk:00-0", "not numbers"),
        ("qk:0-1", "shares nothing, which is written 'none'"),
    ],
)
def test_errors_explain_the_grammar(text: str, message: str) -> None:
    with pytest.raises(UserError, match="write 'none' or PART:") as error:
        parse_pattern(text, 2)
    assert message in str(error.value) and repr(text) in str(error.value)


@pytest.mark.parametrize("part", PARTS)
def test_shared_parts_are_the_same_storage_and_others_are_not(part: str) -> None:
    blocks = create_model("siclip-nano", text_sharing=f"{part}:0-0-1-1").text_encoder.blocks
    modules = blocks if part == "block" else [getattr(block, part) for block in blocks]
    pointers = [next(module.parameters()).data_ptr() for module in modules]
    assert pointers[0] == pointers[1] != pointers[2] == pointers[3]
    gains = {block.alpha.data_ptr() for block in blocks}
    assert len(gains) == (2 if part == "block" else 4)


def test_a_model_without_sasp_refuses_a_pattern() -> None:
    with pytest.raises(UserError, match="requires a siclip model"):
        create_model("mobileclip-nano", image_sharing="qk:0-0")
