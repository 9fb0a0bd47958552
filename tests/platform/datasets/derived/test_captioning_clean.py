from __future__ import annotations

import pytest

from siclip_platform.datasets.derived.captions.clean import clean, near_equal, without_near_equal
from siclip_platform.datasets.derived.captions.config import CleanRules


@pytest.mark.parametrize(
    ("text", "rules", "expected"),
    [
        ("a dog on grass . a cat", {}, "a dog on grass"),
        ("<start_of_text>a dog  on\ngrass . <end_of_text>", {}, "a dog on grass"),
        ("a dog , on grass . a cat", {"cut_at_stop": False}, "a dog, on grass. a cat"),
        ("a 1.5 litre bottle of water. cold", {}, "a 1.5 litre bottle of water"),
        ("A Dog On Grass", {"lower_case": True}, "a dog on grass"),
        ("a dog", {}, None),
        ("a dog", {"min_words": 2}, "a dog"),
        ("one two three four", {"max_words": 3}, None),
        ("a stock photo of a dog", {"without": ("Stock photo",)}, None),
        (". only after the stop", {}, None),
    ],
)
def test_a_text_is_cleaned_or_dropped_by_the_rules(text: str, rules: dict[str, object], expected: str | None) -> None:
    assert clean(text, CleanRules.model_validate(rules)) == expected


def test_near_equal_is_difflibs_ratio_over_words() -> None:
    one, other = "a small brown dog runs on the green grass", "a small brown dog runs on the grass"
    ratio = 2 * 8 / (9 + 8)  # both contain eight words in the same order
    assert near_equal(one, other, ratio) and not near_equal(one, other, ratio + 1e-9)
    assert near_equal("A dog, on grass!", "a dog on grass", 1)


def test_the_order_of_words_distinguishes_captions() -> None:
    one, other = "a dog left of a cat", "a cat left of a dog"
    assert set(one.split()) == set(other.split()) and not near_equal(one, other, 0.9)


def test_the_first_of_near_equal_captions_is_kept() -> None:
    texts = ["a red square", "a red square!", "a blue disc", "seen before"]
    assert without_near_equal(texts, ["Seen before"], 0.9) == ["a red square", "a blue disc"]
    assert without_near_equal(texts, ["Seen before"], 0) == texts
