"""What sections are made of. HTML, Markdown and CSV are all rendered from these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from siclip_platform.report.draw.plots import Heatmap, Plot
from siclip_platform.report.draw.values import Table

Drawn = Plot | Heatmap


@dataclass(frozen=True)
class Text:
    """A paragraph; ``soft``: an explanation, set back."""

    text: str
    soft: bool = False


@dataclass(frozen=True)
class Notes:
    """Warnings and what is missing."""

    lines: Sequence[str]


@dataclass(frozen=True)
class Tile:
    """One figure of the first screen."""

    label: str
    value: str
    detail: str


@dataclass(frozen=True)
class Tiles:
    tiles: Sequence[Tile]


@dataclass(frozen=True)
class Code:
    """Shell lines."""

    text: str


@dataclass(frozen=True)
class Diagram:
    """``svg`` is made here from numbers and escaped text; ``description`` says the same in words."""

    title: str
    svg: str
    description: str
    facts: Sequence[str]


@dataclass(frozen=True)
class Diagrams:
    diagrams: Sequence[Diagram]


@dataclass(frozen=True)
class Retrieval:
    """A caption that a model chose for an image, and whether it is one of the image's own."""

    caption: str
    right: bool


@dataclass(frozen=True)
class Example:
    """``image``: a data URI; ``captions``: the image's own; ``retrieved``: the model's, the nearest first."""

    image: str
    captions: Sequence[str]
    retrieved: Sequence[Retrieval]


@dataclass(frozen=True)
class Gallery:
    examples: Sequence[Example]


Block = Text | Notes | Tiles | Table | Plot | Heatmap | Code | Diagrams | Gallery


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    key: str
    title: str
    blocks: Sequence[Block]

    @property
    def drawn(self) -> list[Drawn]:
        return [block for block in self.blocks if isinstance(block, Plot | Heatmap)]

    @property
    def tables(self) -> list[Table]:
        return [block for block in self.blocks if isinstance(block, Table)]
