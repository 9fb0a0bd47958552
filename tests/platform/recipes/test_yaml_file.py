"""YAML values: numbers as YAML 1.2 reads them, ``--set``, and the line of every node."""

from __future__ import annotations

import math
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from siclip.errors import UserError
from siclip_platform.recipes.problems import KEY
from siclip_platform.recipes.yaml_file import Document, dump_yaml, parse_value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("-2.5E+4", -25000.0),
        (".5e1", 5.0),
        ("1e3", 1000.0),
        ("12", 12),
        ("1_000", 1000),
        ("0x1F", 31),
        ("0", 0),
        ("0.5", 0.5),
        (".inf", math.inf),
        ("true", True),
        ("False", False),
        ("null", None),
        ("", None),
        ("yes", "yes"),
        ("off", "off"),
        ("2024-01-01", "2024-01-01"),
        ("'1e-3'", "1e-3"),
        ("'010'", "010"),
        ("open_clip:ViT-B-32:openai", "open_clip:ViT-B-32:openai"),
        ("s3://bucket/data?region=eu", "s3://bucket/data?region=eu"),
        ("@here", "@here"),
        ("%x", "%x"),
        ("[coca-filtered]", ["coca-filtered"]),
        ("[1e-3, e]", [1e-3, "e"]),
        ("{coca: 1e-1, blip-large: 2}", {"coca": 0.1, "blip-large": 2}),
        ("[{step: 3, weights: {contrastive: 1e0}}]", [{"step": 3, "weights": {"contrastive": 1.0}}]),
    ],
)
def test_a_value_is_read_as_yaml(text: str, value: Any) -> None:
    read = parse_value(text, "--set x")
    assert read == value and type(read) is type(value)


def test_pyyaml_alone_reads_otherwise() -> None:
    """What the loader corrects: each of these is a trap for a number or a name."""
    assert yaml.safe_load("[1e-3, 010, 1:30, off]") == ["1e-3", 8, 90, False]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("010", "read 010 differently"),
        ("1:30", "read 1:30 differently"),
        ("[3, 010]", "--set x: 1: versions of YAML read 010"),
        ("[a", "is not YAML"),
        ("{a: 1", "is not YAML"),
        ('"a', "is not YAML"),
        ("{a: 1, a: 2}", "a: given twice"),
        ("!!python/name:os.system x", "cannot be read"),
        ("!!set {a}", "the tag tag:yaml.org,2002:set cannot be read"),
        ("{[a]: 1}", "a key is a list or a mapping"),
    ],
)
def test_a_value_that_is_not_plain_yaml_is_refused(text: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_value(text, "--set x")
    assert str(caught.value).startswith("--set x: ") and words in str(caught.value)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_that_python_writes_is_read(number: float) -> None:
    assert parse_value(repr(number), "x") == number


TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text("abe01 :#-'\"=<_", max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abe01.", min_size=1, max_size=4), inner),
    max_leaves=8,
)


@given(TREES, st.booleans())
def test_what_is_written_is_read_with_a_line_for_every_node(tree: Any, flow: bool) -> None:
    text = dump_yaml(tree, default_flow_style=flow)
    document = Document(text)
    assert document.value == tree and document.problems == []
    lines = text.splitlines()
    for loc, value in _leaves(tree, ()):
        if isinstance(value, bool):
            assert str(value).lower() in lines[document.line_of(loc) - 1]
        if loc and isinstance(loc[-1], str):
            assert loc[-1] in lines[document.line_of((*loc, KEY)) - 1]


def test_pyyaml_alone_does_not_quote_what_is_read_as_a_number() -> None:
    assert yaml.safe_dump(["1e5"]) == "- 1e5\n"
    assert dump_yaml(["1e5", 1e-5]) == "- '1e5'\n- 1.0e-05\n"


def _leaves(tree: Any, loc: tuple[str | int, ...]) -> list[tuple[tuple[str | int, ...], Any]]:
    if isinstance(tree, dict):
        return [leaf for key, value in tree.items() for leaf in _leaves(value, (*loc, key))]
    if isinstance(tree, list):
        return [leaf for index, value in enumerate(tree) for leaf in _leaves(value, (*loc, index))]
    return [(loc, tree)]


def test_a_line_for_every_key_and_value() -> None:
    document = Document("a:\n  - 1\n  - {b: 2,\n     c: 3}\nd:\n\n  e: 4\n")
    assert document.value == {"a": [1, {"b": 2, "c": 3}], "d": {"e": 4}}
    lines = {("a", KEY): 1, ("a",): 2, ("a", 1, "b"): 3, ("a", 1, "c"): 4, ("d", KEY): 5, ("d",): 7, ("d", "f"): 7}
    assert {loc: document.line_of(loc) for loc in lines} == lines
