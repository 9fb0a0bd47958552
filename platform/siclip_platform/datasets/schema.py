"""The schema of every dataset, and the validation of tables against it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from siclip.errors import UserError

ORIGINAL = "original"
SYNTHETIC = "synthetic"

CAPTION = pa.struct([("text", pa.string()), ("source", pa.string()), ("model", pa.string())])
"""``source`` is original or synthetic; ``model`` is the model that wrote a synthetic caption."""
FALSE_CAPTION = pa.struct([("text", pa.string()), ("kind", pa.string())])
"""``kind`` is one of `siclip.data.negatives.KINDS`."""

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("image", pa.binary()),  # encoded: JPEG, PNG or WebP
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("captions", pa.list_(CAPTION)),
        pa.field("category", pa.string()),  # may be null
        pa.field("meta", pa.string()),  # JSON text, may be null
    ]
)


def validate_schema(schema: pa.Schema, where: str) -> None:
    """Compare column names and types with `SCHEMA`; order, metadata and nullability may differ.

    Args:
        schema: of the table.
        where: the table's name for the message.

    Raises:
        UserError: lists every missing, duplicate, mistyped and unexpected column.
    """
    problems = []
    for field in SCHEMA:
        count = schema.names.count(field.name)
        if count == 0:
            problems.append(f"missing column {field.name!r} ({field.type})")
        elif count > 1:
            problems.append(f"column {field.name!r} occurs {count} times")
        elif not schema.field(field.name).type.equals(field.type):
            problems.append(f"column {field.name!r} is {schema.field(field.name).type}, must be {field.type}")
    problems += [f"unexpected column {name!r}" for name in schema.names if name not in SCHEMA.names]
    if problems:
        raise UserError(
            f"{where} does not have the schema of a dataset:\n  "
            + "\n  ".join(problems)
            + "\nWrite it again with exactly the columns of siclip_platform.datasets.schema.SCHEMA "
            "(store other values of a sample in 'meta' as JSON)"
        )


def validate_table(table: pa.Table, where: str) -> None:
    """Check the schema and every row: unique non-empty ids, non-empty images, positive sizes, usable captions.

    A row needs at least one caption. Every caption needs a text that is not blank and a known source.

    Args:
        table: to check.
        where: the table's name for the message.

    Raises:
        UserError: lists each problem with the number of its rows and the first of them.
    """
    validate_schema(table.schema, where)
    problems = []
    for problem, bad in _row_checks(table):
        # Null counts as bad, because every check requires a value.
        rows = np.flatnonzero(np.asarray(pc.fill_null(bad, True)))
        if len(rows):
            first = int(rows[0])
            problems.append(f"{problem}: {len(rows)} rows, first row {first} (id {table['id'][first].as_py()!r})")
    if problems:
        raise UserError(
            f"{where} has invalid rows:\n  "
            + "\n  ".join(problems)
            + "\nFix or remove these rows, then write the table again"
        )


def _row_checks(table: pa.Table) -> Iterator[tuple[str, Any]]:
    """Yield (problem, boolean per row); null counts as bad."""
    yield "empty id", _blank(table["id"])
    yield "id used more than once", _repeated(table["id"])
    yield "empty image", pc.equal(pc.binary_length(table["image"]), 0)
    for side in ("width", "height"):
        yield f"{side} not positive", pc.less_equal(table[side], 0)

    captions = table["captions"].combine_chunks()
    yield "no caption", pc.equal(pc.list_value_length(captions), 0)
    parents = pc.list_parent_indices(captions)
    flat = pc.list_flatten(captions)
    yield "empty caption", _rows_with(_blank(pc.struct_field(flat, "text")), parents, table.num_rows)
    known = pc.is_in(pc.struct_field(flat, "source"), value_set=pa.array([ORIGINAL, SYNTHETIC]))
    yield (
        f"caption source neither {ORIGINAL!r} nor {SYNTHETIC!r}",
        _rows_with(pc.invert(known), parents, table.num_rows),
    )


def _blank(texts: Any) -> Any:
    return pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(texts)), 0)


def _repeated(values: Any) -> Any:
    counts = pc.value_counts(values.combine_chunks())
    repeated = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    return pc.is_in(values, value_set=repeated.cast(values.type))


def _rows_with(bad: Any, parents: Any, rows: int) -> Any:
    """Return for each of ``rows`` rows whether it has a bad list element."""
    owners = parents.filter(pc.fill_null(bad, True))
    return pc.is_in(pa.array(range(rows), parents.type), value_set=owners)
