"""Generated texts to captions: cleaned, filtered, without near-equal ones."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher

from siclip_platform.datasets.derived.captions.config import CleanRules

_STOP = re.compile(r"\.(?=\s|$)")
_BEFORE_PUNCTUATION = re.compile(r"\s+([.,;:!?])")
_SPECIAL = re.compile(r"<\|?(?:start|end)_?of_?text\|?>")


def clean(text: str, rules: CleanRules) -> str | None:
    """Return the caption for a generated text, or None if a rule drops it."""
    text = " ".join(_SPECIAL.sub(" ", text).split())
    if rules.cut_at_stop:
        text = _STOP.split(text, maxsplit=1)[0]
    text = _BEFORE_PUNCTUATION.sub(r"\1", text).strip()
    if rules.lower_case:
        text = text.lower()
    words = len(text.split())
    if words < rules.min_words or (rules.max_words and words > rules.max_words):
        return None
    if any(part.lower() in text.lower() for part in rules.without):
        return None
    return text


def near_equal(one: str, other: str, threshold: float) -> bool:
    """Return whether difflib's ratio 2M/T over the words, ignoring case, is at least the threshold.

    The order of the words matters: "a dog left of a cat" and "a cat left of a dog" are two captions.
    """
    if threshold == 0:
        return False
    # The quick ratios are upper bounds, so most pairs are decided without the quadratic one.
    matcher = SequenceMatcher(None, _words(one), _words(other), autojunk=False)
    return all(ratio() >= threshold for ratio in (matcher.real_quick_ratio, matcher.quick_ratio, matcher.ratio))


def without_near_equal(texts: Sequence[str], earlier: Sequence[str], threshold: float) -> list[str]:
    """Return the texts that are not near-equal to a previous one or to one of ``earlier``."""
    kept: list[str] = []
    for text in texts:
        if not any(near_equal(text, other, threshold) for other in (*earlier, *kept)):
            kept.append(text)
    return kept


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
