"""Troubleshooting by message: the code can raise each of our messages on that page."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "troubleshooting.md"


def strings_in(folder: Path) -> list[str]:
    """Every string in the code except docstrings, with … in place of inserted values."""
    texts = []
    for path in folder.rglob("*.py"):
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
    return [*strings_in(ROOT / "siclip"), *strings_in(ROOT / "platform")]


def messages() -> list[str]:
    """The code in the first column, except messages of other projects, whose names precede them."""
    rows = re.findall(r"^\| (`[^`]+`)[^|]* \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return [row.strip("`") for row in rows]


def is_in(message: str, texts: list[str]) -> bool:
    """Whether a string contains the message's fixed parts in their order."""
    pattern = re.compile(".*".join(re.escape(part.strip()) for part in message.split("…")), re.DOTALL)
    return any(pattern.search(text) for text in texts)


def test_messages_of_the_page_are_in_the_code(texts: list[str]) -> None:
    found = messages()
    assert len(found) > 40
    assert [message for message in found if not is_in(message, texts)] == []


def test_a_message_that_is_not_in_the_code_is_detected(texts: list[str]) -> None:
    assert is_in("no Ray cluster at …", texts)
    assert not is_in("no Ray clutser at …", texts)
    assert not is_in("this needs … the cluster at …", texts)
