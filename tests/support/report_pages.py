"""Parse a report's page for tests."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from siclip_platform.report import write_report

VOID = {"meta", "img", "br", "input", "link", "rect", "path"}


class Page(HTMLParser):
    """A parsed page.

    Attributes:
        tables: Id → rows of cells (text, exact value), with the heading row first.
        tags: Every start tag with its attributes.
        scripts: Attributes and content of each script.
        style: Content of the style elements.
        text: The visible text.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[tuple[str, str]]]] = {}
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.style = self.text = ""
        self._open: list[tuple[str, dict[str, str | None]]] = []
        self._rows: list[list[tuple[str, str]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        if tag not in VOID:
            self._open.append((tag, found))
        if tag == "table":
            self._rows = self.tables[found["id"] or ""] = []
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append(("", found.get("data-value") or ""))
        elif tag == "script":
            self.scripts.append((found, ""))

    def handle_endtag(self, tag: str) -> None:
        # Some elements, such as p, may be closed implicitly by their parent.
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        names = [tag for tag, _ in self._open]
        if "script" in names:
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif "style" in names:
            self.style += data
        else:
            self.text += data
            if any(tag in ("td", "th") for tag in names):
                text, value = self._rows[-1][-1]
                self._rows[-1][-1] = (text + data, value)

    def figures(self) -> dict[str, dict[str, Any]]:
        """Id of a plot → its plotly figure."""
        return {
            attributes["data-plot"] or "": json.loads(text)
            for attributes, text in self.scripts
            if "data-plot" in attributes
        }

    def column(self, table: str, name: str) -> list[str]:
        """The texts of a column below its heading."""
        head, *rows = self.tables[table]
        index = [cell[0] for cell in head].index(name)
        return [row[index][0] for row in rows]


def report(uri: str, folder: Path, **options: Any) -> tuple[Page, str]:
    """Write a report to ``folder/out`` and return its parsed page and the text of its Markdown twin."""
    paths = write_report(uri, folder / "out", **options)
    return Page(paths.html.read_text(encoding="utf-8")), paths.markdown.read_text(encoding="utf-8")
