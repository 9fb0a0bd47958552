"""Captions as words and noun phrases, by closed word lists: no model is needed, and equal texts are read equally."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from siclip_platform.datasets.derived.negatives.words import (
    FUNCTION_WORDS,
    GENERIC,
    NO_VERBS,
    VERBS,
    meanings,
)

WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*|[^\w\s]")
_SILENT_H = ("hour", "honest", "honor", "honour", "heir")
_LIKE_A_CONSONANT = ("uni", "use", "eu", "one", "once", "ut")
_UNINVITED = ("unin", "unim")
SHORTEST_VERB = 5
"""Letters of a word in -ing or -ed that counts as a verb form."""


@dataclass(frozen=True)
class Token:
    """A word or a punctuation mark of a text: in lower case, and where it is."""

    word: str
    start: int
    stop: int


@dataclass(frozen=True)
class NounPhrase:
    """A noun with the attributes before it, as indices of tokens.

    Attributes:
        attributes: the indices of the attributes.
        head: the index of the noun.
    """

    attributes: tuple[int, ...]
    head: int


def tokens_of(text: str) -> list[Token]:
    """Return the words and punctuation marks of a text."""
    return [Token(found.group().lower(), found.start(), found.end()) for found in WORD.finditer(text)]


def noun_phrases(tokens: Sequence[Token]) -> list[NounPhrase]:
    """Return the noun phrases of a caption in their order.

    A phrase is a run of words that are neither function words nor verbs; its last word is the noun, apart from
    adjectives of the lists behind it ("a cat left of a dog"). A run of such alone ("that is big") is none.
    """
    found: list[NounPhrase] = []
    run: list[int] = []
    for index, token in enumerate([*tokens, None]):
        if token is not None and not _ends_run(token.word, first=not run):
            run.append(index)
            continue
        while run and not _is_noun(tokens[run[-1]].word):
            run.pop()
        if run:
            found.append(NounPhrase(tuple(run[:-1]), run[-1]))
        run = []
    return found


def _ends_run(word: str, first: bool) -> bool:
    if word in FUNCTION_WORDS or word in VERBS or not word[0].isalnum() or word.endswith("ly"):
        return True
    # before a noun a participle is an attribute ("a flying bird"), after it a verb ("a man riding")
    return not first and _is_verb_form(word)


def _is_verb_form(word: str) -> bool:
    return word.endswith(("ing", "ed")) and len(word) >= SHORTEST_VERB and word not in NO_VERBS


@cache
def _adjectives() -> frozenset[str]:
    kinds = ("colour", "size", "direction", "antonym")
    known = meanings()
    return frozenset(word for word, found in known.items() if all(meaning.kind in kinds for meaning in found))


def _is_noun(word: str) -> bool:
    return not _is_verb_form(word) and word not in _adjectives()


def is_exchangeable(noun: str) -> bool:
    """Whether another noun in its place makes the caption false."""
    return noun not in GENERIC and len(noun) > 1 and not noun.isdigit()


def article_of(word: str) -> str:
    """Return the indefinite article before a word: a or an."""
    word = word.lower()
    if word.startswith(_SILENT_H):
        return "an"
    if word.startswith(_LIKE_A_CONSONANT) and not word.startswith(_UNINVITED):
        return "a"
    # "an eight", "an 11"
    return "an" if word[:1] in "aeiou8" or word in ("11", "18") else "a"


def replaced(text: str, tokens: Sequence[Token], changes: Sequence[tuple[int, int, str]]) -> str:
    """Return the text with runs of tokens replaced, and with the articles that their new neighbours need.

    Args:
        text: the caption.
        tokens: of the text.
        changes: (first token, token after the last, new words), in ascending order and without overlap.
    """
    edits = [(tokens[first].start, tokens[stop - 1].stop, new, first) for first, stop, new in changes]
    changed = {first for _, _, _, first in edits}
    for _, _, new, first in list(edits):
        before = first - 1
        if before >= 0 and before not in changed and tokens[before].word in ("a", "an"):
            old = text[tokens[before].start : tokens[before].stop]
            article = article_of(new)
            if old.lower() != article:
                edits.append((tokens[before].start, tokens[before].stop, _as_before(article, old), before))
    for start, stop, new, _ in sorted(edits, reverse=True):
        text = text[:start] + _as_before(new, text[start:stop]) + text[stop:]
    return text


def _as_before(new: str, old: str) -> str:
    """The new words with the capitals of the old ones: the first letter, or all."""
    if len(old) > 1 and old.isupper():
        return new.upper()
    return new[:1].upper() + new[1:] if old[:1].isupper() else new


def normal_form(text: str) -> str:
    """Return a text without case, punctuation and the difference of a and an: equal ones say the same."""
    words = [token.word for token in tokens_of(text) if token.word[0].isalnum()]
    return " ".join("a" if word == "an" else word for word in words)
