"""False captions of a caption by rule: one exchange each, with the words that the dataset itself uses.

A word that only false captions have would give them away. So a word is replaced by words that the dataset uses, with
a probability that grows with how often it does, and articles follow their nouns.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from siclip.data.captions import stable_id
from siclip.data.negatives import KINDS
from siclip_platform.datasets.derived.negatives.phrases import (
    NounPhrase,
    Token,
    is_exchangeable,
    normal_form,
    noun_phrases,
    replaced,
    tokens_of,
)
from siclip_platform.datasets.derived.negatives.words import (
    LONGEST_PHRASE,
    SYMMETRIC,
    Meaning,
    looks_plural,
    meanings,
)

OWN_NOUNS = 5_000
"""The most frequent nouns of the dataset that are in no list."""
OWN_USES = 3
"""Uses of such a noun: rarer ones are often misspelt, or no nouns."""
ONE = frozenset(("one", "1"))
TRIES = 4
"""For each false caption that is wanted: an exchange may give one that is there already."""

Change = tuple[int, int, str]
"""(first token, token after the last, new words)."""
Draw = Callable[[], float]
"""A number in [0, 1)."""


@dataclass(frozen=True)
class FalseCaption:
    """A false caption, and what it changes: one of `siclip.data.negatives.KINDS`."""

    text: str
    kind: str


class Choices:
    """Words to draw from, with probabilities that grow with their uses."""

    def __init__(self, uses: Mapping[str, int]) -> None:
        self.words = [word for word, count in uses.items() if count]
        self.ends = list(accumulate(uses[word] for word in self.words))

    def draw(self, draw: Draw) -> str:
        """Return a word."""
        return self.words[min(bisect_right(self.ends, draw() * self.ends[-1]), len(self.words) - 1)]

    def __len__(self) -> int:
        return len(self.words)


class Vocabulary:
    """The words that captions use, and how often.

    Attributes:
        uses: of every word, in lower case.
        nouns: those that are in no list of `words`, singulars and plurals apart.
    """

    def __init__(self, captions: Iterable[str]) -> None:
        self.uses = Counter[str]()
        heads, listed = Counter[str](), meanings()
        for caption in captions:
            tokens = tokens_of(caption)
            self.uses.update(token.word for token in tokens)
            found = (tokens[phrase.head].word for phrase in noun_phrases(tokens))
            heads.update(noun for noun in found if noun not in listed and noun.isalpha() and is_exchangeable(noun))
        # Equally frequent ones by name, so that the order of the captions does not matter.
        known = sorted((-uses, noun) for noun, uses in heads.items() if uses >= OWN_USES)[:OWN_NOUNS]
        own = {noun: -uses for uses, noun in known}
        self.nouns = tuple(
            Choices({n: c for n, c in own.items() if looks_plural(n) is many}) for many in (False, True)
        )
        self._choices: dict[Meaning, Choices] = {}

    def uses_of(self, phrase: str) -> int:
        """Return how often the captions use a word; of a phrase, its rarest word."""
        return min(self.uses[word] for word in phrase.split())

    def others(self, meaning: Meaning) -> Choices:
        """Return the words that exclude a word and that the captions use."""
        if meaning not in self._choices:
            aligned = meaning.aligned
            others = [aligned] if aligned and self.uses_of(aligned) else meaning.others
            self._choices[meaning] = Choices({other: self.uses_of(other) for other in others})
        return self._choices[meaning]


@dataclass(frozen=True)
class _Exchange:
    """Something to exchange in a caption.

    Attributes:
        changes: the whole exchange, or where the new words go.
        choices: the new words; None for two parts that change places.
        open: whether words that the sample's true captions have may be drawn.
        never: words that do not fit here.
    """

    changes: tuple[Change, ...]
    choices: Choices | None = None
    open: bool = True
    never: frozenset[str] = frozenset()

    def drawn(self, draw: Draw, words: set[str]) -> tuple[Change, ...] | None:
        """Draw one; None if it is not allowed."""
        if self.choices is None:
            return self.changes
        new = self.choices.draw(draw)
        if new in self.never or (not self.open and words & set(new.split())):
            return None
        return tuple((first, stop, new) for first, stop, _ in self.changes)


class FalseCaptions:
    """Makes false captions.

    Args:
        vocabulary: of the dataset.
        count: how many a caption gets; one that allows fewer exchanges gets fewer.
        kinds: what may be changed.
        seed: of the draws, which otherwise depend on the sample's id and the caption alone.
    """

    def __init__(self, vocabulary: Vocabulary, count: int, kinds: Sequence[str] = KINDS, seed: int = 0) -> None:
        self.vocabulary, self.count, self.kinds, self.seed = vocabulary, count, tuple(kinds), seed

    def of(self, sample_id: str, captions: Sequence[str]) -> list[list[FalseCaption]]:
        """Return the false captions of each caption of a sample, all different.

        The kinds take turns in a drawn order. A false caption never says the same as a true one of the sample, and
        where several words exclude a word, it is not replaced by one that a true caption of the sample has.
        """
        true = {normal_form(caption) for caption in captions}
        words = {token.word for caption in captions for token in tokens_of(caption)}
        return [self._of_caption(sample_id, caption, true, words) for caption in captions]

    def _of_caption(self, sample_id: str, caption: str, true: set[str], words: set[str]) -> list[FalseCaption]:
        draw = random.Random(stable_id(f"{self.seed}/{sample_id}/{caption}")).random
        tokens = tokens_of(caption)
        exchanges = self._exchanges(tokens)
        order = sorted((kind for kind in self.kinds if kind in exchanges), key=lambda _: draw())
        found: list[FalseCaption] = []
        said = set(true)
        for turn in range(TRIES * self.count if order else 0):
            kind = order[turn % len(order)]
            possible = exchanges[kind]
            changes = possible[int(draw() * len(possible))].drawn(draw, words)
            if changes is None:
                continue
            text = replaced(caption, tokens, changes)
            form = normal_form(text)
            if form not in said:
                said.add(form)
                found.append(FalseCaption(text, kind))
                if len(found) == self.count:
                    break
        return found

    def _exchanges(self, tokens: Sequence[Token]) -> dict[str, list[_Exchange]]:
        found: dict[str, list[_Exchange]] = {}
        phrases = noun_phrases(tokens)
        for first, second in pairwise(phrases):
            if _nouns_can_swap(tokens, first, second):
                found.setdefault("swap_nouns", []).append(_swap(tokens, first.head, second.head))
            for one, other in _attributes_to_swap(tokens, first, second):
                found.setdefault("swap_attributes", []).append(_swap(tokens, one, other))
        heads = {phrase.head for phrase in phrases}
        index = 0
        while index < len(tokens):
            index += self._replacements(tokens, index, index in heads, found)
        return found

    def _replacements(
        self, tokens: Sequence[Token], index: int, is_head: bool, found: dict[str, list[_Exchange]]
    ) -> int:
        """Add the replacements of what begins at a token; return how many tokens it has."""
        for length in range(min(LONGEST_PHRASE, len(tokens) - index), 0, -1):
            phrase = " ".join(token.word for token in tokens[index : index + length])
            known = meanings().get(phrase, ())
            for meaning in known:
                # Nouns of the lists are verbs and attributes too: "birds fly", "a cat bed".
                if meaning.kind == "noun" and not is_head:
                    continue
                # "one cat" and "two cats": the noun would have to change too.
                never = ONE if meaning.kind == "number" and not is_head else frozenset()
                if phrase in never:
                    continue
                choices = self.vocabulary.others(meaning)
                if len(choices):
                    # Of two opposites the other one may well be true of something else in the image.
                    exchange = _Exchange(((index, index + length, ""),), choices, meaning.is_opposite, never)
                    found.setdefault(meaning.kind, []).append(exchange)
            if known:
                return length
        noun = tokens[index].word
        if is_head and is_exchangeable(noun):
            choices = self.vocabulary.nouns[looks_plural(noun)]
            if len(choices):
                exchange = _Exchange(((index, index + 1, ""),), choices, open=False)
                found.setdefault("noun", []).append(exchange)
        return 1


def _swap(tokens: Sequence[Token], one: int, other: int) -> _Exchange:
    return _Exchange(((one, one + 1, tokens[other].word), (other, other + 1, tokens[one].word)))


def _nouns_can_swap(tokens: Sequence[Token], first: NounPhrase, second: NounPhrase) -> bool:
    """Whether exchanging two nouns changes what is said: "a cat and a dog" says the same as "a dog and a cat"."""
    one, other = tokens[first.head].word, tokens[second.head].word
    if one == other or looks_plural(one) is not looks_plural(other):
        return False
    if not (is_exchangeable(one) and is_exchangeable(other)) or tokens[first.head + 1].word == "of":
        return False
    return not _is_symmetric(tokens, first, second) or _attributes(tokens, first) != _attributes(tokens, second)


def _attributes_to_swap(tokens: Sequence[Token], first: NounPhrase, second: NounPhrase) -> list[tuple[int, int]]:
    """Attributes of two nouns whose exchange changes what is said: of one family, such as two colours."""
    if tokens[first.head].word == tokens[second.head].word and _is_symmetric(tokens, first, second):
        return []
    pairs = [(one, other) for one in first.attributes for other in second.attributes]
    return [pair for pair in pairs if _exclude(*(tokens[index].word for index in pair))]


def _exclude(one: str, other: str) -> bool:
    """Whether two words are in other groups of one family."""
    pairs = [(a, b) for a in meanings().get(one, ()) for b in meanings().get(other, ())]
    if any(a.kind == "number" for a, _ in pairs) and {one, other} & ONE:
        return False
    return any(a.family == b.family and a.group != b.group for a, b in pairs)


def _attributes(tokens: Sequence[Token], phrase: NounPhrase) -> list[str]:
    return sorted(tokens[index].word for index in phrase.attributes)


def _is_symmetric(tokens: Sequence[Token], first: NounPhrase, second: NounPhrase) -> bool:
    """Whether the two nouns may be named in either order."""
    stop = min((*second.attributes, second.head))
    return all(token.word in SYMMETRIC for token in tokens[first.head + 1 : stop])
