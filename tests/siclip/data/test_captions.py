from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from siclip.data.captions import choose_caption
from siclip.data.config import CaptionPolicy

CAPTIONS = [
    {"text": "o", "source": "original", "model": None},
    {"text": "a", "source": "synthetic", "model": "coca"},
    {"text": "b", "source": "synthetic", "model": "coca"},
    {"text": "c", "source": "synthetic", "model": "other"},
]


def shares(**policy: object) -> dict[str, float]:
    """How often each caption is chosen for 4,000 samples and epochs."""
    chosen = [
        CAPTIONS[choose_caption(CAPTIONS, CaptionPolicy(**policy), 0, epoch, str(i))]["text"]
        for epoch in range(4)
        for i in range(1000)
    ]
    return {text: chosen.count(text) / len(chosen) for text in "oabc"}


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ({"synthetic_share": 0.3}, [0.7, 0.1, 0.1, 0.1]),
        ({"synthetic_share": 0.6, "synthetic_captions": 2}, [0.4, 0.3, 0.3, 0]),
        ({"synthetic_share": 1.0, "synthetic_captions": 1}, [0, 1, 0, 0]),
        ({"synthetic_share": 1.0, "weights": {"other": 2.0}}, [0, 0.25, 0.25, 0.5]),
        ({"synthetic_share": 0.5, "weights": {"coca": 0.0}}, [0.5, 0, 0, 0.5]),
        ({"synthetic_share": 0.5, "weights": {"synthetic": 0.0}}, [1, 0, 0, 0]),
        ({"synthetic_share": 0.5, "weights": {"synthetic": 0.5, "other": 1.0}}, [0.5, 0.125, 0.125, 0.25]),
    ],
)
def test_shares_are_as_configured(policy: dict[str, object], expected: list[float]) -> None:
    np.testing.assert_allclose(list(shares(**policy).values()), expected, atol=0.03)


def test_what_a_policy_excludes_is_never_chosen() -> None:
    assert shares(synthetic_share=1.0, synthetic_captions=2)["c"] == 0
    assert shares(synthetic_share=1.0, weights={"coca": 0.0}) == {"o": 0, "a": 0, "b": 0, "c": 1}


def test_the_choice_depends_on_seed_epoch_and_sample_only() -> None:
    def draw(seed: int, epoch: int) -> list[int]:
        return [choose_caption(CAPTIONS, CaptionPolicy(), seed, epoch, str(i)) for i in range(50)]

    assert draw(0, 0) == draw(0, 0)
    assert draw(0, 0) != draw(1, 0)
    assert draw(0, 0) != draw(0, 1)


def test_equal_weights_choose_like_no_weights() -> None:
    policies = CaptionPolicy(), CaptionPolicy(weights={"original": 3.0, "synthetic": 3.0})
    drawn = [[choose_caption(CAPTIONS, policy, 0, 0, str(i)) for i in range(300)] for policy in policies]
    assert drawn[0] == drawn[1]
    assert len(Counter(drawn[0])) == 4


def test_a_sample_with_captions_of_one_source_gets_one_of_these() -> None:
    assert choose_caption(CAPTIONS[:1], CaptionPolicy(synthetic_share=1.0), 0, 0, "x") == 0
    assert choose_caption(CAPTIONS[1:], CaptionPolicy(synthetic_share=0.0), 0, 0, "x") in {0, 1, 2}
    nothing = CaptionPolicy(weights={"original": 0.0, "synthetic": 0.0})
    assert choose_caption(CAPTIONS, nothing, 0, 0, "x") in range(4)
