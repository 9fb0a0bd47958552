"""Import of damaged shards compared with the list of damages, also with a driver that is killed."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from pair_shards import DAMAGE, write_pairs
from PIL import Image

from siclip.errors import UserError
from siclip_platform.datasets.derived.stage import Pool
from siclip_platform.datasets.importing.ingest import Imported, import_dataset
from siclip_platform.datasets.importing.parts import ImportConfig
from siclip_platform.datasets.importing.sources.columns import ColumnNames
from siclip_platform.datasets.importing.sources.find import find_source
from siclip_platform.datasets.manifest import Dataset, open_dataset

HERE = Pool(here=True)
BAD_SHARE = 0.01


class Run(NamedTuple):
    """An import of damaged shards.

    Attributes:
        source: folder of the shards.
        pairs: number of pairs in them.
        shard_rows: pairs per shard.
        expected: location → reason of every damaged pair.
        imported: the result.
    """

    source: Path
    pairs: int
    shard_rows: int
    expected: dict[str, str]
    imported: Imported


def run_import(source: Path, folder: Path, config: ImportConfig, max_bad_share: float = 1.0) -> Imported:
    found = find_source(str(source), None, ColumnNames(), config.shard_rows)
    return import_dataset(found, folder, config, max_bad_share=max_bad_share, pool=HERE)


@pytest.fixture(scope="module", params=[(1_500, 100), pytest.param((20_000, 1_000), marks=pytest.mark.long)])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Import shards with 1 % damaged pairs, without Ray and without interruption."""
    pairs, shard_rows = request.param
    folder = tmp_path_factory.mktemp("pairs")
    expected = write_pairs(folder / "cc", pairs, shard_rows, BAD_SHARE)
    config = ImportConfig(shard_rows=shard_rows, row_group_rows=50, validation_share=0.1)
    yield Run(folder / "cc", pairs, shard_rows, expected, run_import(folder / "cc", folder / "plain", config, 0.02))


def rows_of(dataset: Dataset) -> pa.Table:
    return pa.concat_tables(pq.read_table(path) for split in dataset.split_names for path in dataset.shards(split))


def ledger_of(dataset: Dataset) -> list[dict]:
    return pq.read_table(dataset.folder / "ledger.parquet").to_pylist()


@pytest.mark.slow
def test_the_ledger_lists_every_damaged_pair_with_its_damage(run: Run) -> None:
    dataset = run.imported.dataset
    ledger = ledger_of(dataset)
    assert {f"{row['source']}/{row['place']}": row["reason"] for row in ledger} == run.expected
    assert set(run.expected.values()) == set(DAMAGE)
    assert len(DAMAGE) == 10
    table = rows_of(dataset)
    assert run.imported.read == run.pairs == table.num_rows + len(ledger)
    assert run.imported.rejected == Counter(run.expected.values())
    bombs = [row for row in ledger if row["reason"] == "decompression bomb"]
    # The files of bombs are small: they are rejected by their header.
    assert {row["bytes"] for row in bombs} < set(range(1_000_000))
    assert all(len(row["sha256"]) == 64 for row in ledger if row["reason"] != "missing image")
    assert all(row["sha256"] is None for row in ledger if row["reason"] == "missing image")


@pytest.mark.slow
def test_every_good_pair_is_imported_once_as_webdataset_reads_it(run: Run) -> None:
    urls = [str(path) for path in sorted(run.source.glob("*.tar"))[:3]]
    read = {sample["__key__"]: sample for sample in webdataset.WebDataset(urls, shardshuffle=False)}
    table = rows_of(run.imported.dataset)
    rows = {row["id"]: row for row in table.to_pylist() if row["id"][:5] in ("00000", "00001", "00002")}
    bad = {where.split("/")[1] for where in run.expected if where[:5] in ("00000", "00001", "00002")}
    duplicates = {where.split("/")[1] for where, reason in run.expected.items() if reason == "duplicate id"}
    assert set(rows) == (set(read) - bad) | (duplicates & {k for k in read if k[:5] == "00000"})
    for key in list(rows)[:60]:
        row, sample = rows[key], read[key]
        assert row["captions"] == [{"text": sample["txt"].decode(), "source": "original", "model": None}]
        assert json.loads(row["meta"]) == json.loads(sample["json"])
        with Image.open(io.BytesIO(sample["jpg"])) as before, Image.open(io.BytesIO(row["image"])) as after:
            assert after.size == (row["width"], row["height"])
            assert min(after.size) == min(256, *before.size)
            same = np.asarray(before.resize(after.size, Image.Resampling.BICUBIC), np.float32)
            # JPEG changes pixels; wrong crops or orientations differ by far more.
            assert np.abs(same - np.asarray(after, np.float32)).mean() < 4
            assert (row["image"] == sample["jpg"]) == (min(before.size) <= 256)


def ids_of(dataset: Dataset, split: str) -> set[str]:
    return {i for path in dataset.shards(split) for i in pq.read_table(path, columns=["id"])["id"].to_pylist()}


def test_splits_depend_on_the_ids_and_not_on_the_shards(tmp_path: Path) -> None:
    write_pairs(tmp_path / "source", 120, 40, 0)
    config = ImportConfig(validation_share=0.25)
    few = run_import(tmp_path / "source", tmp_path / "a", config).dataset
    many = run_import(tmp_path / "source", tmp_path / "b", config.model_copy(update={"shard_rows": 7})).dataset
    assert len(many.shards("train")) > len(few.shards("train"))
    assert 10 <= few.rows("validation") <= 50
    for split in ("train", "validation"):
        assert ids_of(few, split) == ids_of(many, split)
    assert ids_of(few, "train") | ids_of(few, "validation") == {f"{n // 40:05d}{n % 40:04d}" for n in range(120)}


def start(run: Run, folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "siclip_platform", "data", "import", str(run.source), str(folder)]
    command += ["--shard-rows", str(run.shard_rows), "--row-group-rows", "50", "--validation-share", "0.1"]
    command += ["--max-bad-share", "0.02"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def kill_at(process: subprocess.Popen[bytes], done: Path, count: int, pause: float) -> None:
    """Send SIGKILL ``pause`` seconds after ``count`` tasks have finished."""
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        if done.is_dir() and len(list(done.glob("*.json"))) >= count:
            time.sleep(pause)
            break
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()[0].decode()
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
@pytest.mark.chaos
def test_a_driver_killed_at_random_moments_ends_with_the_same_dataset(run: Run, tmp_path: Path) -> None:
    kills = 1 if run.pairs < 10_000 else 5
    parts = run.pairs // run.shard_rows
    random.seed(run.pairs)
    moments = sorted(random.sample(range(1, parts - 2), kills))
    folder = tmp_path / "killed"
    finished: dict[str, int] = {}
    for moment in moments:
        kill_at(start(run, folder), folder / ".work/parts/.done", moment, random.random() * 0.3)
        for record in (folder / ".work/parts/.done").glob("*.json"):
            for file in json.loads(record.read_text())["files"]:
                stamp = (folder / ".work/parts" / file["path"]).stat().st_mtime_ns
                # A finished shard keeps its time of modification through all restarts.
                assert finished.setdefault(file["path"], stamp) == stamp, "a finished shard was written again"
    output, _ = (last := start(run, folder)).communicate(timeout=600)
    assert last.returncode == 0, output.decode()
    dataset = open_dataset(folder)
    assert dataset.hash == run.imported.dataset.hash
    assert f"manifest {dataset.hash}" in output.decode()
    assert not (folder / ".work").exists()
    changed = {where[:5] for where, reason in run.expected.items() if reason == "duplicate id"}
    # Shards with duplicates are rewritten by the second stage, so their times may change.
    kept = [n for n in finished if n.startswith(("train", "validation")) and n.split("-")[1] not in changed]
    assert kept
    assert all((folder / name).stat().st_mtime_ns == finished[name] for name in kept)


def test_a_second_import_waits_for_the_first_and_reuses_it(tmp_path: Path) -> None:
    write_pairs(tmp_path / "source", 40, 10, 0)
    config = ImportConfig(shard_rows=10)
    with ThreadPoolExecutor(2) as pool:
        imports = [pool.submit(run_import, tmp_path / "source", tmp_path / "out", config) for _ in range(2)]
    assert len({done.result().dataset.hash for done in imports}) == 1
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"manifest.json", "ledger.parquet", *(f"train-{part:05d}-000.parquet" for part in range(4))}


def test_too_many_bad_rows_stop_the_import_and_finished_parts_are_reused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from siclip_platform.datasets.importing import ingest

    source, folder = tmp_path / "source", tmp_path / "out"
    write_pairs(source, 60, 10, 0.2)
    config = ImportConfig(shard_rows=10)
    with pytest.raises(UserError, match=r"11 of 60 rows are bad, 18\.33%, more than --max-bad-share 0\.1") as error:
        run_import(source, folder, config, 0.1)
    assert "\n  animated: " in str(error.value)
    with pytest.raises(UserError, match=r"contains no manifest\.json"):
        open_dataset(folder)
    assert (
        len(pq.read_table(folder / "ledger.parquet")) == 11
    )  # without the duplicate, which only the second stage finds

    def never(folder: Path, task: object) -> None:
        raise AssertionError("a finished shard was imported again")

    monkeypatch.setattr(ingest, "import_part", never)
    imported = run_import(source, folder, config, 0.2)
    assert (imported.read, sum(imported.rejected.values())) == (60, 12)
    assert imported.dataset.rows("train") == 48


def test_an_import_without_a_usable_row_writes_no_manifest(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(b"no image")
        (tmp_path / f"{number}.txt").write_text("a caption")
    with pytest.raises(UserError, match=r"none of the 3 rows can be used: .*ledger.parquet lists the reasons"):
        run_import(tmp_path, tmp_path / "out", ImportConfig())
    assert len(pq.read_table(tmp_path / "out" / "ledger.parquet")) == 3
    with pytest.raises(UserError, match=r"contains no manifest\.json"):
        open_dataset(tmp_path / "out")


def test_a_finished_import_is_reused_and_another_is_refused(tmp_path: Path) -> None:
    write_pairs(tmp_path / "source", 20, 10, 0)
    config = ImportConfig(shard_rows=10)
    first = run_import(tmp_path / "source", tmp_path / "out", config)
    assert run_import(tmp_path / "source", tmp_path / "out", config).dataset.hash == first.dataset.hash
    (tmp_path / "source").rename(tmp_path / "moved")
    again = find_source(str(tmp_path / "moved"), None, ColumnNames(), 10)
    elsewhere = import_dataset(again, tmp_path / "b", config, name="source", pool=HERE)
    assert elsewhere.dataset.hash == first.dataset.hash, "the hash depends on the path"
    with pytest.raises(UserError, match="other settings"):
        run_import(tmp_path / "moved", tmp_path / "out", config.model_copy(update={"split": "test"}))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").touch()
    with pytest.raises(UserError, match="not empty"):
        run_import(tmp_path / "moved", tmp_path / "mine", config)
