"""Small files that claim much: each is read in bounded memory and time, measured in a process of its own."""

from __future__ import annotations

import bz2
import gzip
import lzma
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from import_parts import picture

MIB = 2**20
MEASURE = """
import resource, sys
from pathlib import Path
from siclip_platform.datasets.importing.parts import ImportConfig, PartJob, import_part
from siclip_platform.datasets.importing.sources.columns import ColumnNames
from siclip_platform.datasets.importing.sources.find import find_source
from siclip_platform.datasets.derived.stage import Task
source = find_source(sys.argv[1], None, ColumnNames(), 10_000)
limit = 3 << 30  # address space: the code before took more and would take the machine's
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
Path(sys.argv[2]).mkdir()
for number, part in enumerate(source.parts):
    job = PartJob(root=source.root, number=number, piece=part, config=ImportConfig())
    result = import_part(Path(sys.argv[2]), Task(name=str(number), payload=job.model_dump(mode="json"))).result
    print(result["read"], result["reasons"])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def peak(source: Path, folder: Path) -> tuple[int, str]:
    """Import in another process; return the MiB that it took beyond its start, and what it printed."""
    command = [sys.executable, "-c", MEASURE, str(source), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2_000:]
    return int(done.stdout.split()[-1]), done.stdout


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT)


def zeros(size: int) -> Iterator[bytes]:
    for _ in range(size // MIB):
        yield bytes(MIB)


def many_members() -> Iterator[bytes]:
    for number in range(200_000):
        yield header(f"{number:09d}.txt", 0)


def many_files_of_one_sample() -> Iterator[bytes]:
    for number in range(100_000):
        yield header(f"a.{number:09d}.jpg", 0)


TARS: dict[str, Callable[[], Iterator[bytes]]] = {
    "a long name": lambda: (x for x in [header("x", 1024 * MIB, tarfile.GNUTYPE_LONGNAME), *zeros(1024 * MIB)]),
    "an extended header": lambda: (x for x in [header("x", 1024 * MIB, tarfile.XHDTYPE), *zeros(1024 * MIB)]),
    "many extended headers": lambda: (header("x", 0, tarfile.GNUTYPE_LONGNAME) for _ in range(5_000)),
    "a huge image": lambda: (x for x in [header("a.png", 1024 * MIB), *zeros(1024 * MIB)]),
    "a huge json": lambda: (x for x in [header("a.json", 200 * MIB), b"[" * 200 * MIB]),
    "a member without end": lambda: (x for x in [header("a.bin", 2**60), bytes(512)]),
    "members without number": many_members,
    "files of one sample": many_files_of_one_sample,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] * (name == "members without number")) for name in TARS]
)
def test_a_small_archive_takes_little_memory(name: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with gzip.open(tmp_path / "in/0.tar.gz", "wb", compresslevel=1) as file:
        for piece in TARS[name]():
            file.write(piece)
    used, output = peak(tmp_path / "in", tmp_path / "out")
    assert used < 400, output
    assert not output.startswith("0 ")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("suffix", "opened"), [("bz2", bz2.open), pytest.param("xz", lzma.open, marks=pytest.mark.long)]
)
def test_a_decoder_expands_no_more_than_is_asked_for(suffix: str, opened: Callable, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with opened(tmp_path / f"in/0.tar.{suffix}", "wb") as file:
        file.write(header("a.bin", 800 * MIB))
        for piece in zeros(800 * MIB):
            file.write(piece)
    assert (tmp_path / f"in/0.tar.{suffix}").stat().st_size < MIB
    assert peak(tmp_path / "in", tmp_path / "out")[0] < 400


@pytest.mark.slow
def test_an_xz_file_with_a_huge_dictionary_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 512 * MIB, "preset": 0}]
    data = lzma.compress(header("a.png", 0), lzma.FORMAT_XZ, filters=filters)
    (tmp_path / "in/0.tar.xz").write_bytes(data)
    used, output = peak(tmp_path / "in", tmp_path / "out")
    assert used < 400
    assert "damaged source" in output


@pytest.mark.slow
def test_a_parquet_file_of_nulls_takes_little_memory(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    rows = 400_000
    table = pa.table({"image": pa.nulls(rows, pa.binary()), "caption": pa.nulls(rows, pa.string())})
    pq.write_table(table, tmp_path / "in/a.parquet", row_group_size=rows)
    used, output = peak(tmp_path / "in", tmp_path / "out")
    assert output.startswith(f"{rows} {{'missing image': {rows}}}")
    assert used < 400


@pytest.mark.slow
def test_row_groups_that_expand_are_refused_and_huge_entries_are_read_one_by_one(tmp_path: Path) -> None:
    for name in ("expands", "rows", "entries"):
        (tmp_path / name).mkdir()
    good = {"image": [picture(0)], "caption": ["good"]}
    huge = pa.table({"image": pa.array([bytes(400 * MIB)]), "caption": ["huge"]})
    pq.write_table(huge, tmp_path / "expands/a.parquet", compression="zstd", use_dictionary=False)
    pq.write_table(pa.table(good), tmp_path / "expands/b.parquet")
    nulls = {"image": pa.nulls(20_000_000, pa.binary()), "caption": pa.nulls(20_000_000, pa.string())}
    pq.write_table(pa.table(nulls), tmp_path / "rows/a.parquet", row_group_size=20_000_000)
    entry = pa.array([np.random.default_rng(0).bytes(8 * MIB)], pa.binary())
    entries = pa.DictionaryArray.from_arrays(pa.array([0] * 200, pa.int32()), entry)
    texts = pa.array(["text"] * 200)
    options = {"dictionary_pagesize_limit": 2**30, "use_dictionary": ["image"]}
    pq.write_table(pa.table({"image": entries, "caption": texts}), tmp_path / "entries/a.parquet", **options)
    for name, told in (
        ("expands", "'decompression bomb': 1"),
        ("rows", "'decompression bomb': 1"),
        ("entries", "200 "),
    ):
        used, output = peak(tmp_path / name, tmp_path / f"out-{name}")
        assert told in output
        assert used < 1_200, name
