"""Colours, dashes and symbols: Okabe and Ito's palette, which the colour-blind can tell apart, darkened a little."""

from __future__ import annotations

from typing import NamedTuple


class Look(NamedTuple):
    colour: str
    dash: str
    plotly_symbol: str
    matplotlib_dash: str
    matplotlib_symbol: str


LOOKS = (
    Look("#8b919c", "solid", "circle", "-", "o"),  # one of many
    Look("#2f7de1", "solid", "circle", "-", "o"),
    Look("#d9661f", "dash", "square", "--", "s"),
    Look("#1f9e77", "dot", "diamond", ":", "D"),
    Look("#b455a0", "dashdot", "triangle-up", "-.", "^"),
    Look("#c79a00", "longdash", "x", "--", "X"),
    Look("#3aa6c9", "solid", "cross", "-", "P"),
    Look("#c0444f", "dash", "star", "--", "*"),
    Look("#7a6ad8", "dot", "triangle-down", ":", "v"),
    Look("#6f8f2f", "dashdot", "hexagon", "-.", "h"),
)
MANY, BEST, CONTROL, TEACHER = 0, 1, 2, 3


def look(index: int) -> Look:
    """The look of a number; above the last they come round again, without the grey one."""
    return LOOKS[index] if index < len(LOOKS) else LOOKS[1 + (index - 1) % (len(LOOKS) - 1)]


def band_colour(colour: str, opacity: float = 0.16) -> str:
    red, green, blue = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"
