"""A report's page as a test reads it."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from siclip_platform.report import write_report

VOID = {"meta", "img", "br", "input", "link", "rect", "path"}


class Page(HTMLParser):
    """Tables by id as (text, exact value) cells, attributes, scripts and style, and the visible text."""

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
        return {
            attributes["data-plot"] or "": json.loads(text)
            for attributes, text in self.scripts
            if "data-plot" in attributes
        }

    def column(self, table: str, name: str) -> list[str]:
        head, *rows = self.tables[table]
        place = [cell[0] for cell in head].index(name)
        return [row[place][0] for row in rows]


def report(uri: str, folder: Path, **chosen: Any) -> tuple[Page, str]:
    """The page and the Markdown twin, with one line for each paragraph's whitespace."""
    paths = write_report(uri, folder / "out", **chosen)
    return Page(paths.html.read_text(encoding="utf-8")), paths.markdown.read_text(encoding="utf-8")
