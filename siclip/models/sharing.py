"""Sharing patterns: which weights each SAS-P block of a tower uses, and which part of a block is shared.

Grammar: ``none``, or ``PART:A-B-…`` with PART one of ``qk`` (queries and keys), ``mlp`` or ``block``, and one number
per block that identifies its weights. Numbers are assigned from 0 in order of first use (a restricted growth
string), so every pattern has exactly one name: ``qk:0-0-1-1``, never ``qk:1-1-0-0``.
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
    """Which weights each block uses.

    Attributes:
        part: the part of a block that is shared; None: nothing is.
        assignment: for each block the index of the weights that it uses for ``part``.
    """

    part: SharedPart | None
    assignment: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.part}:{'-'.join(map(str, self.assignment))}" if self.part else "none"

    def owner(self, block: int) -> int:
        """Index of the first block that uses the same weights as ``block``."""
        return self.assignment.index(self.assignment[block])


def parse_pattern(text: str, blocks: int) -> SharingPattern:
    """Parse a pattern for a tower of ``blocks`` blocks.

    Raises:
        UserError: it is invalid; the message gives the grammar and an example for this tower.
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
    fields = numbers.split("-")
    if not all(field.isascii() and field.isdigit() and field == str(int(field)) for field in fields):
        raise refuse("the blocks are not numbers joined by '-'")
    assignment = tuple(int(field) for field in fields)
    if len(assignment) != blocks:
        raise refuse(f"{len(assignment)} numbers for {blocks} blocks")
    canonical = _rename(assignment)
    if assignment != canonical:
        raise refuse(
            f"numbers start at 0 in order of first use, so this pattern is {'-'.join(map(str, canonical))!r}"
        )
    if len(set(assignment)) == blocks:
        raise refuse("it shares nothing, which is written 'none'")
    return SharingPattern(part, assignment)  # type: ignore[arg-type]


def enumerate_patterns(blocks: int, parts: tuple[str, ...] = PARTS) -> Iterator[SharingPattern]:
    """``none``, then every distinct pattern of ``blocks`` blocks that shares something."""
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
