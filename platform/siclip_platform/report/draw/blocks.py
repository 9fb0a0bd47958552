"""The blocks of a report. HTML, Markdown and CSV are all rendered from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from siclip_platform.report.draw.plots import Heatmap, Plot
from siclip_platform.report.draw.values import Table

Drawn = Plot | Heatmap


@dataclass(frozen=True)
class Text:
    """A paragraph; ``soft`` marks an explanation, which is shown smaller."""

    text: str
    soft: bool = False


@dataclass(frozen=True)
class Notes:
    """Warnings and missing data, one line each."""

    lines: Sequence[str]


@dataclass(frozen=True)
class Tile:
    """One highlighted value at the top of the report."""

    label: str
    value: str
    detail: str


@dataclass(frozen=True)
class Tiles:
    tiles: Sequence[Tile]


@dataclass(frozen=True)
class Code:
    """Preformatted text, such as shell commands."""

    text: str


@dataclass(frozen=True)
class Diagram:
    """A drawing with its description in words.

    Attributes:
        svg: Trusted markup: the page does not escape it, so it must not contain text from the store.
    """

    title: str
    svg: str
    description: str
    facts: Sequence[str]


@dataclass(frozen=True)
class Diagrams:
    diagrams: Sequence[Diagram]


@dataclass(frozen=True)
class Retrieval:
    """A caption that a model retrieved for an image; ``right`` if it is one of the image's own captions."""

    caption: str
    right: bool


@dataclass(frozen=True)
class Example:
    """An example image.

    Attributes:
        image: A data URI.
        captions: The image's own captions.
        retrieved: The captions that the model retrieved, nearest first.
    """

    image: str
    captions: Sequence[str]
    retrieved: Sequence[Retrieval]


@dataclass(frozen=True)
class Gallery:
    examples: Sequence[Example]


Block = Text | Notes | Tiles | Table | Plot | Heatmap | Code | Diagrams | Gallery


@dataclass(frozen=True)
class Section:
    """A heading and the blocks below it."""

    key: str
    title: str
    blocks: Sequence[Block]

    @property
    def drawn(self) -> list[Drawn]:
        return [block for block in self.blocks if isinstance(block, Plot | Heatmap)]

    @property
    def tables(self) -> list[Table]:
        return [block for block in self.blocks if isinstance(block, Table)]


@dataclass(frozen=True)
class Part:
    """The report of one study."""

    title: str
    subtitle: str
    sections: Sequence[Section]

    @property
    def drawn(self) -> list[Drawn]:
        return [plot for section in self.sections for plot in section.drawn]

    @property
    def tables(self) -> list[Table]:
        return [table for section in self.sections for table in section.tables]
