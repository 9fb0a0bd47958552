"""Sharing patterns: which weights each SAS-P block of a tower uses, and which part of a block is shared.

Grammar: ``none``, or ``PART:A-B-…`` with PART one of ``qk`` (queries and keys), ``mlp``, ``block``, and one
number per block naming its weights. Numbers appear in order of first use from 0 (a restricted growth string),
so every pattern has exactly one name: ``qk:0-0-1-1``, never ``qk:1-1-0-0``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from siclip.errors import UserError

SharedPart = Literal["qk", "mlp", "block"]
PARTS: tuple[str, ...] = get_args(SharedPart)


@dataclass(frozen=True)
class SharingPattern:
    """``assignment[i]`` is the index of the weights that block i uses for ``part``; part None shares nothing."""

    part: SharedPart | None
    assignment: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.part}:{'-'.join(map(str, self.assignment))}" if self.part else "none"

    def owner(self, block: int) -> int:
        """The first block that uses the same weights as ``block``."""
        return self.assignment.index(self.assignment[block])


def parse_pattern(text: str, blocks: int) -> SharingPattern:
    """Read a pattern for a tower of ``blocks`` blocks.

    Raises:
        UserError: with the grammar and an example that fits this tower.
    """
    example = "-".join(str(i // 2) for i in range(blocks))
    grammar = f"write 'none' or PART:{example} with PART one of {', '.join(PARTS)} and one number per block"

    def refuse(problem: str) -> UserError:
        return UserError(f"sharing pattern {text!r}: {problem}; {grammar}")

    if text == "none":
        return SharingPattern(None, tuple(range(blocks)))
    part, colon, numbers = text.partition(":")
    if not colon:
        raise refuse("no ':' between the part and the blocks")
    if part not in PARTS:
        raise refuse(f"unknown part {part!r}")
    pieces = numbers.split("-")
    if not all(piece.isascii() and piece.isdigit() and piece == str(int(piece)) for piece in pieces):
        raise refuse("the blocks are not numbers joined by '-'")
    assignment = tuple(int(piece) for piece in pieces)
    if len(assignment) != blocks:
        raise refuse(f"{len(assignment)} numbers for {blocks} blocks")
    canonical = _rename(assignment)
    if assignment != canonical:
        raise refuse(f"numbers go from 0 in order of first use, so this one is {'-'.join(map(str, canonical))!r}")
    if len(set(assignment)) == blocks:
        raise refuse("it shares nothing, which is written 'none'")
    return SharingPattern(part, assignment)  # type: ignore[arg-type]


def enumerate_patterns(blocks: int, parts: tuple[str, ...] = PARTS) -> Iterator[SharingPattern]:
    """``none`` and then every distinct pattern of ``blocks`` blocks that shares something."""
    yield SharingPattern(None, tuple(range(blocks)))
    for part in parts:
        for assignment in _growth_strings(blocks):
            if len(set(assignment)) < blocks:
                yield SharingPattern(part, assignment)  # type: ignore[arg-type]


def _rename(assignment: tuple[int, ...]) -> tuple[int, ...]:
    order = {value: index for index, value in enumerate(dict.fromkeys(assignment))}
    return tuple(order[value] for value in assignment)


def _growth_strings(length: int) -> Iterator[tuple[int, ...]]:
    if length == 0:
        yield ()
        return
    for prefix in _growth_strings(length - 1):
        for value in range(max(prefix, default=-1) + 2):
            yield (*prefix, value)
