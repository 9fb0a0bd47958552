from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from siclip.errors import UserError
from siclip_platform.datasets.schema import SCHEMA, validate_schema, validate_table


def row(**changes: Any) -> dict[str, Any]:
    captions = [{"text": "a cat", "source": "original", "model": None}]
    good = {"id": "a", "image": b"x", "width": 4, "height": 4, "captions": captions}
    return {**good, "category": None, "meta": None, **changes}


def table(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), pa.schema([field.with_nullable(True) for field in SCHEMA]))


def test_the_schema_is_valid_in_any_order() -> None:
    other = pa.schema(list(SCHEMA)[::-1], metadata={"a": "b"})
    assert other != SCHEMA
    assert validate_schema(SCHEMA, "here") is None
    assert validate_schema(other, "here") is None


def test_every_wrong_column_is_named_with_table_and_remedy() -> None:
    fields = [field for field in SCHEMA if field.name != "meta"]
    fields[2] = pa.field("width", pa.int64())
    with pytest.raises(UserError) as error:
        validate_schema(pa.schema([*fields, pa.field("license", pa.string())]), "shard 7")
    for part in (
        "shard 7",
        "missing column 'meta'",
        "'width' is int64, must be int32",
        "'license'",
        "SCHEMA",
    ):
        assert part in str(error.value)


def test_captions_as_plain_strings_are_mistyped() -> None:
    index = SCHEMA.get_field_index("captions")
    with pytest.raises(UserError, match="'captions' is list<"):
        validate_schema(SCHEMA.set(index, pa.field("captions", pa.list_(pa.string()))), "here")


def test_good_rows_are_valid_also_in_chunks_and_slices() -> None:
    two = table(row(), row(id="b", captions=row()["captions"] * 2))
    chunked = pa.concat_tables([two, table(row(id="c"))])
    assert chunked.column("id").num_chunks == 2
    for good in (chunked, table(row(id=""), row()).slice(1), SCHEMA.empty_table()):
        assert validate_table(good, "here") is None


CAPTION = {"text": "a cat", "source": "original", "model": None}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"id": ""}, "empty id"),
        ({"id": "  "}, "empty id"),
        ({"id": None}, "empty id"),
        ({"id": "a"}, "id used more than once"),
        ({"image": b""}, "empty image"),
        ({"image": None}, "empty image"),
        ({"width": 0}, "width not positive"),
        ({"height": -3}, "height not positive"),
        ({"height": None}, "height not positive"),
        ({"captions": []}, "no caption"),
        ({"captions": None}, "no caption"),
        ({"captions": [CAPTION, {**CAPTION, "text": " \n"}]}, "empty caption"),
        ({"captions": [{**CAPTION, "text": None}]}, "empty caption"),
        ({"captions": [CAPTION, {**CAPTION, "source": "web"}]}, "caption source neither"),
        ({"captions": [{**CAPTION, "source": None}]}, "caption source neither"),
    ],
)
def test_a_bad_row_is_found_among_good_ones(changes: dict[str, Any], problem: str) -> None:
    rows = [row(), row(id="b", captions=[CAPTION] * 3), row(**{"id": "c", **changes}), row(id="d")]
    with pytest.raises(UserError) as error:
        validate_table(table(*rows), "the table")
    first = 0 if "once" in problem else 2
    assert f"{problem}" in str(error.value)
    assert f"first row {first} " in str(error.value)
    assert "the table" in str(error.value)
    assert str(error.value).count("rows, first") == 1
