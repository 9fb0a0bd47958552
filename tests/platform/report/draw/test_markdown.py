"""Escaping of the Markdown twin compared with an independent parser, and the format of values."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from siclip_platform.report.draw.markdown import code_block, escape, table
from siclip_platform.report.draw.values import Cell, Table, duration, metric_cell, parameter_cell, points

PARSER = MarkdownIt("commonmark").enable("table")
TEXT = st.text(st.one_of(st.sampled_from("\\`|*_[]()<>&#~$!-+ \nab1"), st.characters(codec="utf-8")), max_size=30)


def _shown(text: str) -> str:
    """The text that a cell shows: whitespace collapsed, NUL replaced as CommonMark requires."""
    return " ".join(text.split()).replace("\x00", "\ufffd")


@settings(max_examples=50, deadline=None)
@given(TEXT)
def test_any_text_survives_a_table_cell(text: str) -> None:
    content = Table(key="t", title="t", columns=["a", "b"], rows=[[Cell(text), Cell("end")]], numeric=[False, True])
    tokens = PARSER.parse(table(content))
    inline = [token for token in tokens if token.type == "inline"][3:]
    shown = ["".join(child.content for child in token.children or []) for token in inline]
    assert all(c.type in ("text", "text_special") for token in inline for c in token.children or [])
    assert shown == [_shown(text), "end"]


@settings(max_examples=50, deadline=None)
# Markdown reads a carriage return as a newline.
@given(TEXT.filter(lambda text: "\r" not in text))
def test_any_command_survives_its_block(text: str) -> None:
    (token,) = PARSER.parse(code_block(text))
    assert token.type == "fence"
    assert token.content == text.replace("\x00", "\ufffd") + "\n"


def test_names_inside_words_keep_their_underscores() -> None:
    assert escape("image_retrieval_recall@1") == "image_retrieval_recall@1"
    assert escape("_x_") == r"\_x\_"


@pytest.mark.parametrize(
    ("value", "shown", "exact"),
    [
        ("0.00012345678", "0.0001235", 0.00012345678),
        ("12345.678", "12,346", 12345.678),
        ("128", "128", 128.0),
        ("0-0-1-1", "0-0-1-1", "0-0-1-1"),
        ("nan", "nan", None),
        (None, "—", None),
    ],
)
def test_parameters(value: str | None, shown: str, exact: float | str | None) -> None:
    assert parameter_cell(value) == Cell(shown, exact)


def test_values() -> None:
    assert metric_cell("test/mean_recall@1", 0.47013) == Cell("47.0 %", 0.47013)
    assert metric_cell("train/loss", 0.0) == Cell("0", 0.0)
    assert metric_cell("test/mean_recall@1", 0.0) == Cell("0.0 %", 0.0)
    assert metric_cell("validation/loss", None) == Cell("not recorded")
    assert points("test/mean_recall@1", -0.0314) == "−3.1 points"
    assert [duration(value) for value in (119.94, 600, 9000)] == ["119.9 s", "10.0 min", "2.5 h"]
