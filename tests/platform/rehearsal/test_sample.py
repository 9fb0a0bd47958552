"""Which rows of a source are rehearsed, and how many rows it is said to have."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from import_parts import imported, picture
from rehearsal_parts import write_shards

from siclip.errors import UserError
from siclip_platform.datasets.derived.stage import Pool
from siclip_platform.datasets.importing.ingest import import_dataset
from siclip_platform.datasets.importing.parts import ImportConfig
from siclip_platform.datasets.importing.sources.columns import ColumnNames
from siclip_platform.datasets.importing.sources.find import ImportSource, find_source
from siclip_platform.rehearsal.sample import PARTS, count_rows, sample_of, small_import


def found(source: Path) -> ImportSource:
    return find_source(str(source), None, ColumnNames(), 10_000)


def test_rows_are_those_that_an_import_reads(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "tar", 3, 7)
    (tmp_path / "folder").mkdir()
    for number in range(5):
        (tmp_path / "folder" / f"{number}.png").write_bytes(picture(number))
        (tmp_path / "folder" / f"{number}.txt").write_text(f"picture {number}")
    shutil.copytree(tmp_path / "folder", tmp_path / "list")
    with (tmp_path / "list" / "all.csv").open("w") as file:
        csv.writer(file).writerows([["image", "caption"], *([f"{n}.png", f"text {n}"] for n in range(5))])
    table = {"image": [picture(n) for n in range(9)], "caption": [f"text {n}" for n in range(9)]}
    (tmp_path / "parquet").mkdir()
    pq.write_table(pa.table(table), tmp_path / "parquet" / "a.parquet", row_group_size=4)
    Dataset.from_dict(table).save_to_disk(tmp_path / "arrow")
    for name in ("tar", "folder", "list", "parquet", "arrow"):
        source = tmp_path / name
        assert count_rows(found(source)) == imported(source, tmp_path / f"{name}-imported").imported.read, name
    assert count_rows(found(shards)) == 21


def test_other_files_are_counted_by_their_bytes(tmp_path: Path) -> None:
    source = write_shards(tmp_path / "tar", 5, 40)
    (source / "00004.tar").write_bytes((source / "00000.tar").read_bytes())
    assert count_rows(found(source)) == pytest.approx(200, rel=0.05)
    whole = (source / "00002.tar").read_bytes()
    (source / "00002.tar").write_bytes(whole + whole)  # the largest: two archives in one
    with pytest.raises(UserError, match=r"00002\.tar of .* cannot be counted: data follows its end mark"):
        count_rows(found(source))


def test_the_first_rows_of_first_last_and_middle_files(tmp_path: Path) -> None:
    source = found(write_shards(tmp_path / "tar", 9, 6))
    sample = sample_of(source, 10)
    assert [part.name for part in sample.parts] == ["00000.tar", "00003.tar", "00005.tar", "00008.tar"]
    assert len(sample.parts) == PARTS
    config = small_import(ImportConfig(validation_share=0.001), sample)
    assert config.validation_share == 0.1
    done = import_dataset(sample, tmp_path / "data", config, pool=Pool(here=True))
    ids = [
        row
        for split in done.dataset.split_names
        for shard in done.dataset.shards(split)
        for row in pq.read_table(shard, columns=["id"])["id"].to_pylist()
    ]
    expected = [f"{shard:05d}{row:04d}" for shard in (0, 3, 5, 8) for row in range(3)]
    assert sorted(ids) == expected and done.read == 12
    # The whole source is another dataset: its import does not take the sample for finished work.
    with pytest.raises(UserError, match="other settings"):
        import_dataset(source, tmp_path / "data", config, pool=Pool(here=True))


def test_every_split_of_the_source_is_in_the_sample(tmp_path: Path) -> None:
    for split, shards in (("train", 8), ("validation", 2)):
        write_shards(tmp_path / "cc" / split, shards, 3)
    sample = sample_of(found(tmp_path / "cc"), 12)
    assert {part.split for part in sample.parts} == {"train", "validation"}
    assert sample.rows_per_part == 2
