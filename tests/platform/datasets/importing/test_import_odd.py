"""Regressions: odd rows that were lost, merged or fatal. Each must be one row of the data or of the ledger."""

from __future__ import annotations

import io
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from PIL import Image

from siclip.data.mixing import mixture
from siclip_platform.datasets.derived.stage import run_stage
from siclip_platform.datasets.importing.images import ImageRules, prepare_image
from siclip_platform.datasets.importing.sources.access import Access, Reader
from siclip_platform.datasets.importing.sources.columns import ColumnNames, plain, row_sample
from siclip_platform.datasets.importing.sources.lists import ListForm, rows_with_offsets
from siclip_platform.datasets.importing.sources.sample import Rejection, SourceSample
from siclip_platform.datasets.importing.sources.tables import parquet_samples
from siclip_platform.storage import without_credentials


def test_a_value_that_is_not_utf8_rejects_only_its_row(tmp_path: Path) -> None:
    raw = pa.array([b"ant", b"\xff\xfe", b"cat", b"dog"], pa.binary())
    # Bypasses Arrow's validation, as damaged files of other tools do.
    captions = pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": pa.array([b"x"] * 4, pa.binary()), "caption": captions}), path)
    columns = ColumnNames(image="image", caption=("caption",))
    reader = Reader(tmp_path, Access())
    found = list(parquet_samples(pafs.LocalFileSystem(), str(path), "a", range(1), 0, columns, reader))
    assert [sample.rejected is None for sample in found] == [True, False, True, True]


def test_an_unclosed_quotation_mark_is_rejected() -> None:
    text = b'a\tb\nx\t"open one\ny\tplain\n'
    found = [row for _, row in rows_with_offsets(io.BytesIO(text), ListForm(("image", "caption"), "\t"))]
    assert [isinstance(row, Rejection) for row in found] == [False, True, False]


def test_an_image_beyond_the_limit_of_jpeg_is_rejected() -> None:
    out = io.BytesIO()
    Image.fromarray(np.zeros((40, 66_000, 3), np.uint8)).save(out, "PNG")
    with pytest.raises(Rejection):
        prepare_image(out.getvalue(), ImageRules(size=64, min_side=8))


def test_any_value_of_a_table_is_converted_to_json() -> None:
    import datetime

    assert plain({"d": datetime.timedelta(seconds=3), "n": 1, "l": [b"a"]}) == {"d": "0:00:03", "n": 1, "l": ["YQ=="]}


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("s3://KEY:SECRET@bucket/cc12m?region=x", "s3://bucket/cc12m"),
        ("s3://KEY:SEC/RET@bucket/cc12m", "s3://…"),
        ("https://host:8080/a.jpg?signature=SECRET", "https://host:8080/a.jpg"),
        ("https://host/a.jpg?signature=SECRET", "https://host/a.jpg"),
        ("a/b@c.jpg", "a/b@c.jpg"),
    ],
)
def test_credentials_are_removed_from_a_uri(uri: str, shown: str) -> None:
    assert without_credentials(uri) == shown


def test_the_signature_of_a_rows_uri_is_used_and_not_stored(tmp_path: Path) -> None:
    fsspec.filesystem("memory").pipe_file("/odd/a.jpg?signature=hunter2", b"bytes")
    reader = Reader(tmp_path, Access(hosts=("odd", "bucket")))
    columns = ColumnNames(image="path", caption=("text",))

    def sample(uri: str) -> SourceSample:
        return row_sample({"path": uri, "text": "x"}, columns, "a.csv", "0", reader)

    assert sample("memory://odd/a.jpg?signature=hunter2").image == b"bytes"
    for uri in (
        "memory://odd/b.jpg?signature=hunter2",
        "memory://elsewhere/b.jpg?signature=hunter2",
        "s3://KEY:SEC/RET@bucket/a.jpg",
        "nosuch://a.jpg?key=hunter2",
    ):
        rejected = sample(uri).rejected
        assert rejected is not None
        assert not any(part in str(rejected.detail) for part in ("hunter2", "KEY:", "/RET"))


def test_a_driver_killed_while_writing_its_plan_can_be_restarted(tmp_path: Path) -> None:
    (tmp_path / "..stage.json.123.tmp").write_text("{")
    (tmp_path / ".done").mkdir()
    assert run_stage(tmp_path, {"a": 1}, [], lambda task: None) == []


def test_a_tiny_weight_still_has_a_share() -> None:
    mixed = mixture([1000, 1000], [1.0, 1e-5])
    assert 0 < float(mixed.shares[1]) == pytest.approx(0.01)
