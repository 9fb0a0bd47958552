"""Draw sharing patterns: one box per block; blocks with the same weights have the same letter and an arc."""

from __future__ import annotations

from siclip.errors import UserError
from siclip.models.sharing import SharingPattern, parse_pattern
from siclip_platform.report.draw.looks import look

BOX, GAP, TOP = 44, 14, 34  # pixels
PART_NAMES = {"qk": "queries and keys", "mlp": "MLP", "block": "whole block"}


def pattern(text: str | None) -> SharingPattern | None:
    """Parse a pattern from a parameter; None if it is not one.

    ``none`` is not drawn either, because it does not give the number of blocks.
    """
    if not text or ":" not in text:
        return None
    try:
        return parse_pattern(text, len(text.partition(":")[2].split("-")))
    except (UserError, ValueError):
        return None


def letters(found: SharingPattern) -> str:
    """The weights that each block uses, for example ``A A B B``."""
    return " ".join(chr(ord("A") + index % 26) for index in found.assignment)


def sharing_svg(found: SharingPattern, name: str) -> str:
    """Draw a pattern as SVG.

    Args:
        found: The pattern.
        name: Its name; it must not contain markup. A name that `pattern` could parse does not.
    """
    count = len(found.assignment)
    width = count * BOX + (count - 1) * GAP + 8
    parts = [
        f'<svg viewBox="0 0 {width} {TOP + BOX + 24}" width="{width}" height="{TOP + BOX + 24}" role="img" '
        f'aria-label="{name}: weights {letters(found)}" xmlns="http://www.w3.org/2000/svg">'
    ]
    for one in range(count):
        following = [j for j in range(one + 1, count) if found.assignment[j] == found.assignment[one]]
        if following:
            parts.append(_arc(one, following[0], look(found.assignment[one] + 1).colour))
    for index, (group, letter) in enumerate(zip(found.assignment, letters(found).split(), strict=True)):
        left = 4 + index * (BOX + GAP)
        # Dashed without fill, so that unshared weights are visible without colour.
        shared = found.assignment.count(group) > 1
        colour = look(group + 1).colour
        fill = f'fill="{colour}" fill-opacity="0.22"' if shared else 'fill="none"'
        dash = "" if shared else ' stroke-dasharray="4 3"'
        parts.append(
            f'<rect x="{left}" y="{TOP}" width="{BOX}" height="{BOX}" rx="7" {fill} stroke="{colour}" '
            f'stroke-width="2"{dash}/><text x="{left + BOX / 2}" y="{TOP + BOX / 2 + 6}" text-anchor="middle" '
            f'font-size="17" font-weight="600" fill="currentColor">{letter}</text>'
            f'<text x="{left + BOX / 2}" y="{TOP + BOX + 17}" text-anchor="middle" font-size="12" '
            f'fill="currentColor">{index}</text>'
        )
    return "".join([*parts, "</svg>"])


def _arc(one: int, other: int, colour: str) -> str:
    left, right = (4 + index * (BOX + GAP) + BOX / 2 for index in (one, other))
    # The farther the block, the higher the arc, so that arcs stay apart.
    height = TOP - 4 - min(24, 10 * (other - one))
    return (
        f'<path d="M{left} {TOP} C{left} {height},{right} {height},{right} {TOP}" fill="none" stroke="{colour}" '
        'stroke-width="2"/>'
    )
