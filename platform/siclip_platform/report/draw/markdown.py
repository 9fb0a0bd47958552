"""Render the Markdown twin of a report: the same sentences and tables, and links to the plots as PNG files."""

from __future__ import annotations

import re
from collections.abc import Sequence

from siclip_platform.report.draw.blocks import (
    Block,
    Code,
    Diagram,
    Diagrams,
    Example,
    Gallery,
    Notes,
    Part,
    Text,
    Tiles,
)
from siclip_platform.report.draw.values import Cell, Table


def escape(text: str) -> str:
    """Escape text for Markdown and the HTML inside it, on one line."""
    text = " ".join(text.split())
    # An underscore inside a word has no meaning in Markdown; escaping it would only make metric names hard to read.
    text = re.sub(r"([\\`*\[\]|$~#]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))", r"\\\1", text)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def table(content: Table, level: int = 2) -> str:
    """A pipe table below its heading; numbers are right-aligned."""
    heading = f"{'#' * level} {escape(content.title)}"
    if not content.rows:
        return f"{heading}\n\nNone."
    lines = [
        [escape(name) for name in content.columns],
        ["---:" if numeric else "---" for numeric in content.numeric],
        *([_cell(cell) for cell in row] for row in content.shown),
    ]
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    after = [escape(text) for text in (content.note, content.omission) if text]
    return "\n\n".join([heading, body, *after])


def _cell(cell: Cell) -> str:
    return f"[{escape(cell.text)}](<{cell.link}>)" if cell.link else escape(cell.text)


def code_block(text: str) -> str:
    """A fenced shell block. Its fence is longer than any run of backticks in the text."""
    fence = "`" * max(3, 1 + max(map(len, re.findall(r"`+", text)), default=0))
    return f"{fence}sh\n{text}\n{fence}"


def document(
    title: str, subtitle: str, opening: Sequence[str], overview: Sequence[Block], parts: Sequence[Part], files: str
) -> str:
    """Render the whole twin.

    Args:
        title: Main heading.
        subtitle: Paragraph below it.
        opening: Further paragraphs.
        overview: Blocks before the parts.
        parts: One part per study.
        files: Relative path of the folder with plots and data.
    """
    lines = [f"# {escape(title)}", escape(subtitle), *map(escape, opening)]
    lines += [text for block in overview for text in _block(block, files, 2)]
    for part in parts:
        level = 2
        if len(parts) > 1:
            lines += [f"## {escape(part.title)}", escape(part.subtitle)]
            level = 3
        for section in part.sections:
            lines.append(f"{'#' * level} {escape(section.title)}")
            lines += [text for block in section.blocks for text in _block(block, files, level + 1)]
    return "\n\n".join(lines) + "\n"


def _block(block: Block, files: str, level: int) -> list[str]:
    """The paragraphs of a block."""
    match block:
        case Text():
            found = escape(block.text)
        case Notes():
            found = "\n".join(f"- {escape(line)}" for line in block.lines)
        case Tiles():
            tiles = [(escape(tile.label), escape(tile.value), escape(tile.detail)) for tile in block.tiles]
            found = "\n".join(f"- {label}: **{value}** ({detail})" for label, value, detail in tiles)
        case Table():
            found = table(block, level)
        case Code():
            found = code_block(block.text)
        case Diagrams():
            found = "\n".join(_diagram(diagram) for diagram in block.diagrams)
        case Gallery():
            found = "\n".join(line for example in block.examples for line in _example(example))
        case _:
            heading = f"{'#' * level} {escape(block.title)}"
            drawn = f"![{escape(block.description)}]({files}/plots/{block.key}.png)"
            found = f"{heading}\n\n{drawn}\n\nData: [{block.key}.csv]({files}/data/{block.key}.csv)"
    return [found] if found else []


def _diagram(diagram: Diagram) -> str:
    facts = "; ".join(map(escape, diagram.facts))
    return f"- {escape(diagram.title)}: {escape(diagram.description)} ({facts})"


def _example(example: Example) -> list[str]:
    """Captions only: the images are in the HTML page."""
    own = "; ".join(map(escape, example.captions))
    found = [f"  - {'✓' if one.right else '✗'} {escape(one.caption)}" for one in example.retrieved]
    return [f"- {own}", *found]
