"""The report's Markdown twin: the same sentences and tables; the curves are in the HTML."""

from __future__ import annotations

import re
from collections.abc import Sequence

from siclip_platform.report.values import Table


def escape(text: str) -> str:
    """Text that Markdown and the HTML inside it show as it is, on one line.

    An underscore inside a word is left alone: it means nothing there.
    """
    text = " ".join(text.split())
    text = re.sub(r"([\\`*\[\]|$~#]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))", r"\\\1", text)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def table(content: Table) -> str:
    """A pipe table under its heading; numbers to the right."""
    if not content.rows:
        return f"## {escape(content.title)}\n\nNone."
    lines = [
        [escape(name) for name in content.columns],
        ["---:" if numeric else "---" for numeric in content.numeric],
        *([escape(cell.text) for cell in row] for row in content.rows),
    ]
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"## {escape(content.title)}\n\n{body}"


def code_block(text: str) -> str:
    """A fenced block whose fence is longer than any run of backticks in it."""
    fence = "`" * max(3, 1 + max(map(len, re.findall(r"`+", text)), default=0))
    return f"{fence}sh\n{text}\n{fence}"


def document(
    *,
    title: str,
    subtitle: str,
    sentences: Sequence[str],
    notes: Sequence[str],
    tables: Sequence[Table],
    command: str,
) -> str:
    """The whole twin; the last table is the one that the command belongs to."""
    *before, last = tables
    parts = [f"# {escape(title)}", escape(subtitle), *map(escape, sentences)]
    if notes:
        parts.append("## What is missing\n\n" + "\n".join(f"- {escape(note)}" for note in notes))
    parts += [table(content) for content in before]
    parts += ["## How to reproduce", code_block(command), table(last)]
    parts.append("The learning curves and the cost of each run are drawn in `report.html`, beside this file.")
    return "\n\n".join(parts) + "\n"
