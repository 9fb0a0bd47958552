"""Colours, dashes and symbols of series.

The colours follow the palette of Okabe and Ito (2008), which is safe for colour-blind readers, slightly darkened for
contrast on white. Dash and symbol differ too, so that no series depends on colour alone.
"""

from __future__ import annotations

from typing import NamedTuple


class Look(NamedTuple):
    colour: str
    dash: str
    plotly_symbol: str
    matplotlib_dash: str
    matplotlib_symbol: str


LOOKS = (
    Look("#8b919c", "solid", "circle", "-", "o"),  # grey, for one of many
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
    """The look with this number; past the last they repeat, without the grey one."""
    return LOOKS[index] if index < len(LOOKS) else LOOKS[1 + (index - 1) % (len(LOOKS) - 1)]


def band_colour(colour: str, opacity: float = 0.16) -> str:
    """A ``#rrggbb`` colour as a translucent CSS colour."""
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"
