"""Arrow files of Hugging Face and others: what they claim is checked before it is allocated."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from import_parts import imported, picture

from siclip.errors import UserError
from siclip_platform.datasets.importing.sources.arrow_messages import check_messages

ROWS = 6


def written(path: Path, *, is_file: bool = False, compression: str | None = None) -> bytes:
    """Write three batches of two rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"image": [picture(n) for n in range(ROWS)], "text": [f"text {n} " * 40 for n in range(ROWS)]})
    options = pa.ipc.IpcWriteOptions(compression=compression)
    opened: Any = pa.ipc.new_file if is_file else pa.ipc.new_stream
    with opened(str(path), table.schema, options=options) as writer:
        for batch in table.to_batches(max_chunksize=2):
            writer.write_batch(batch)
    return path.read_bytes()


def texts(folder: Path, out: Path) -> tuple[list[str], list[str]]:
    """Import; return the captions and the details of the ledger."""
    found = imported(folder, out)
    return sorted(captions[0] for captions in found.captions.values()), [row["detail"] for row in found.ledger]


@pytest.mark.parametrize("is_file", [False, True])
@pytest.mark.parametrize("compression", [None, "zstd", "lz4"])
def test_whole_and_cut_files_yield_their_rows(is_file: bool, compression: str | None, tmp_path: Path) -> None:
    data = written(tmp_path / "in/a.arrow", is_file=is_file, compression=compression)
    expected = [" ".join([f"text {n}"] * 40) for n in range(ROWS)]
    assert texts(tmp_path / "in", tmp_path / "out") == (expected, [])
    # Cut: what Arrow itself reads before the damage is kept.
    cut = data[: len(data) * 3 // 5]
    (tmp_path / "in/a.arrow").write_bytes(cut)
    read = 0
    with pytest.raises((pa.ArrowInvalid, OSError)):
        for batch in pa.ipc.open_stream(pa.BufferReader(cut[8:] if is_file else cut)):
            read += batch.num_rows
    assert 0 < read < ROWS
    found, details = texts(tmp_path / "in", tmp_path / "cut")
    assert found == expected[:read] and f"cut or damaged after {read} rows" in details[0]


def test_what_a_file_claims_is_refused_before_it_is_allocated(tmp_path: Path) -> None:
    path = tmp_path / "in/a.arrow"
    data = written(path, compression="zstd")
    whole = pa.BufferReader(data)
    assert check_messages(whole) == (3, "")
    # Each buffer begins with its size after decompression: that of the last texts is 2 rows of 280 bytes.
    claimed = data.replace(struct.pack("<q", 560), struct.pack("<q", 2**45))
    assert claimed != data
    batches, problem = check_messages(pa.BufferReader(claimed))
    assert batches < 3 and f"claims to expand to {2**45}" in problem
    path.write_bytes(claimed)
    found, details = texts(tmp_path / "in", tmp_path / "out")
    assert len(found) == 2 * batches and f"claims to expand to {2**45}" in details[0]
    # The length of a body, and of a header.
    plain = written(path)
    batch = pa.ipc.read_message(pa.py_buffer(plain[plain.index(b"\xff\xff\xff\xff", 8) :]))
    body = struct.pack("<q", batch.body.size)
    assert body in plain
    batches, problem = check_messages(pa.BufferReader(plain.replace(body, struct.pack("<q", 2**50))))
    assert batches == 0 and f"claims {2**50} bytes" in problem
    for junk in (
        b"",
        b"\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"\xff\xff\xff\xff\x10\x00\x00\x00" + bytes(16),
        bytes(range(64)),
    ):
        assert check_messages(pa.BufferReader(junk))[0] == 0


def test_values_outside_of_their_buffer_cost_their_batch_and_not_the_process(tmp_path: Path) -> None:
    data = written(tmp_path / "in/a.arrow")
    sizes = [len(picture(n)) for n in range(2)]
    offsets = struct.pack("<iii", 0, sizes[0], sum(sizes))
    assert data.count(offsets) >= 1
    (tmp_path / "in/a.arrow").write_bytes(data.replace(offsets, struct.pack("<iii", 0, 2**30, sum(sizes)), 1))
    with pytest.raises(UserError, match="none of the 1 rows can be used"):
        texts(tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (b"\x00\xffgarbage", "is no state.json of Hugging Face datasets"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[1, 2]", "is no state.json of Hugging Face datasets"),
        (b'{"_data_files": [{"name": "a.arrow"}]}', "is no state.json of Hugging Face datasets"),
        (b'{"_data_files": 7}', "is no state.json of Hugging Face datasets"),
        (b" " * (2**20 + 1), "more than a state.json"),
        (json.dumps({"_indices_data_files": [1]}).encode(), "flatten_indices"),
    ],
)
def test_a_state_that_cannot_be_read_is_one_sentence(state: bytes, message: str, tmp_path: Path) -> None:
    written(tmp_path / "in/a.arrow")
    (tmp_path / "in/state.json").write_bytes(state)
    with pytest.raises(UserError, match=message) as refused:
        imported(tmp_path / "in", tmp_path / "out")
    assert str(tmp_path / "in/state.json") in str(refused.value) and "\n" not in str(refused.value)
