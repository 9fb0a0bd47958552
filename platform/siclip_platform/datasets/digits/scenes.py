"""A digit scene: two things in a relation, its captions, and captions that are false for it."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Set
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COLOURS = {
    "red": (235, 45, 45),
    "green": (40, 205, 70),
    "blue": (65, 110, 255),
    "yellow": (255, 225, 40),
    "purple": (190, 60, 235),
    "white": (245, 245, 245),
}
SIZES = ("small", "big")
INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
SHORT_RELATION = {"left of": "left of", "right of": "right of", "above": "over", "below": "under"}

Combination = tuple[int, str]
"""A digit and its colour."""

ALL_COMBINATIONS: frozenset[Combination] = frozenset((digit, colour) for digit in range(10) for colour in COLOURS)


@dataclass(frozen=True)
class Thing:
    """A digit with a colour and a size."""

    digit: int
    colour: str
    size: str

    @property
    def phrase(self) -> str:
        return f"{self.size} {self.colour} {WORDS[self.digit]}"

    @property
    def combination(self) -> Combination:
        return self.digit, self.colour


@dataclass(frozen=True)
class Scene:
    """``first`` is ``relation`` (for example "left of") ``second``. They differ in digit and in colour."""

    first: Thing
    second: Thing
    relation: str

    @property
    def things(self) -> tuple[Thing, Thing]:
        return self.first, self.second

    @property
    def caption(self) -> str:
        return f"a {self.first.phrase} {self.relation} a {self.second.phrase}"

    @property
    def inverse(self) -> Scene:
        """The same scene described from the other thing."""
        return Scene(self.second, self.first, INVERSE[self.relation])

    @property
    def paraphrases(self) -> tuple[str, str]:
        """The inverted caption and another template; both true."""
        one, two = self.first, self.second
        article = "an" if two.digit == 8 else "a"
        return self.inverse.caption, (
            f"there is a {one.size} {WORDS[one.digit]} in {one.colour} {SHORT_RELATION[self.relation]} "
            f"{article} {WORDS[two.digit]} that is {two.size} and {two.colour}"
        )

    def contains(self, combinations: Set[Combination]) -> bool:
        return any(thing.combination in combinations for thing in self.things)


@cache
def held_out_combinations(seed: int) -> frozenset[Combination]:
    """Return one digit for each colour, all different; these never occur in train and validation."""
    digits = random_stream(seed, "held out").permutation(10)
    return frozenset((int(digit), colour) for digit, colour in zip(digits, COLOURS, strict=False))


@cache
def distinct_scenes(combinations: frozenset[Combination]) -> tuple[Scene, ...]:
    """Return every scene of these combinations once: no two are equal or inverse to each other."""
    things = [Thing(digit, colour, size) for digit, colour in sorted(combinations) for size in SIZES]
    return tuple(
        Scene(first, second, relation)
        for relation in ("left of", "above")
        for first in things
        for second in things
        if first.digit != second.digit and first.colour != second.colour
    )


def negatives(scene: Scene, rng: np.random.Generator, combinations: frozenset[Combination]) -> dict[str, str]:
    """Return attribute → a false caption that differs from the original caption only in that attribute.

    A replaced digit or colour does not occur in the scene, and its combination is in ``combinations``.
    """
    first, second = scene.first, scene.second
    digits = {first.digit, second.digit}
    colours = {first.colour, second.colour}

    def other_digit(thing: Thing) -> Thing:
        options = [d for d in range(10) if d not in digits and (d, thing.colour) in combinations]
        return replace(thing, digit=options[rng.integers(len(options))])

    def other_colour(thing: Thing) -> Thing:
        options = [c for c in COLOURS if c not in colours and (thing.digit, c) in combinations]
        return replace(thing, colour=options[rng.integers(len(options))])

    def other_size(thing: Thing) -> Thing:
        return replace(thing, size=SIZES[1 - SIZES.index(thing.size)])

    def change_one(change: Callable[[Thing], Thing]) -> Scene:
        if rng.integers(2):
            return replace(scene, first=change(first))
        return replace(scene, second=change(second))

    swapped = replace(scene, first=replace(first, colour=second.colour), second=replace(second, colour=first.colour))
    changed = {
        "digit": change_one(other_digit),
        "colour": change_one(other_colour),
        "swapped_colours": swapped,
        "relation": replace(scene, relation=INVERSE[scene.relation]),
        "size": change_one(other_size),
    }
    return {attribute: variant.caption for attribute, variant in changed.items()}


def random_stream(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    """Return a generator that depends only on the arguments, not on the process or the order of calls."""
    # crc32 instead of hash(), which Python salts per process.
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), *numbers])
