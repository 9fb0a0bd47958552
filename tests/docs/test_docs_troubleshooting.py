"""Troubleshooting by message: each message of ours on that page is one that the code can give."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "troubleshooting.md"


def written(place: Path) -> list[str]:
    """Every text in the code but docstrings, with … for what is filled in."""
    texts = []
    for path in place.rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        for node in nodes:
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
                texts.append("".join(str(part) for part in parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                texts.append(node.value)
    return texts


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [*written(ROOT / "siclip"), *written(ROOT / "platform")]


def messages() -> list[str]:
    """The first column's code, but for messages of others, which are named before it."""
    rows = re.findall(r"^\| (`[^`]+`)[^|]* \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return [row.strip("`") for row in rows]


def given(message: str, texts: list[str]) -> bool:
    """Whether a text has the message's fixed parts in their order."""
    pattern = re.compile(".*".join(re.escape(part.strip()) for part in message.split("…")), re.DOTALL)
    return any(pattern.search(text) for text in texts)


def test_messages_of_the_page_are_in_the_code(texts: list[str]) -> None:
    found = messages()
    assert len(found) > 40
    assert [message for message in found if not given(message, texts)] == []


def test_a_message_that_is_not_given_is_found(texts: list[str]) -> None:
    assert given("no Ray cluster at …", texts)
    assert not given("no Ray clutser at …", texts)
    assert not given("this needs … the cluster at …", texts)
