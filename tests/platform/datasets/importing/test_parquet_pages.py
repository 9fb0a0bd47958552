"""A Parquet page that claims more than its column is refused before it is allocated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from import_parts import imported, picture

from siclip_platform.datasets.importing.sources.parquet_pages import page_problem


def varint(value: int) -> bytes:
    """Thrift's zigzag varint."""
    value, out = value << 1, b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("compression", ["snappy", "zstd", "gzip", "none"])
def test_honest_files_of_any_writer_pass(version: str, compression: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table = pa.table(
        {
            "image": [rng.bytes(int(rng.integers(0, 20_000))) for _ in range(600)],
            "text": [f"text {n % 7}" for n in range(600)],
            "none": pa.nulls(600, pa.string()),
            "list": [[float(n)] * (n % 4) for n in range(600)],
        }
    )
    options = {"data_page_version": version, "row_group_size": 250, "write_page_index": True}
    pq.write_table(table, tmp_path / "a.parquet", compression=compression, data_page_size=30_000, **options)
    with pq.ParquetFile(tmp_path / "a.parquet") as file, pa.OSFile(str(tmp_path / "a.parquet")) as stream:
        for group in range(file.num_row_groups):
            assert page_problem(stream, file.metadata.row_group(group)) == ""


def test_a_page_that_claims_more_than_its_column_costs_its_row_group(tmp_path: Path) -> None:
    path = tmp_path / "in/a.parquet"
    path.parent.mkdir()
    noise = np.random.default_rng(0).bytes(2**21)
    table = pa.table({"image": [picture(0), noise, picture(1)], "text": ["a", "b", "c"]})
    options = {"use_dictionary": False, "row_group_size": 2, "data_page_size": 100}
    pq.write_table(table, path, compression="zstd", **options)
    column = pq.ParquetFile(path).metadata.row_group(0).column(0)
    data = bytearray(path.read_bytes())
    # The header of the only page: three fields of type i32, the page's kind and its sizes unpacked and packed.
    at = column.data_page_offset + 3
    claimed = varint(2**27 - 1)
    assert data[at - 3 : at : 2] == b"\x15\x15" and data[at + len(claimed)] == 0x15
    data[at : at + len(claimed)] = claimed
    path.write_bytes(data)
    found = imported(tmp_path / "in", tmp_path / "out")
    assert list(found.captions.values()) == [["c"]]
    assert found.reasons == {"decompression bomb": 1}
    assert f"a page of 'image' that claims {2**27 - 1} bytes" in found.ledger[0]["detail"]
