"""Splits never leak: rows of one image are one sample, a source's splits are kept, a share is drawn by image."""

from __future__ import annotations

import json
import tarfile
from itertools import chain
from pathlib import Path
from typing import Any

import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from import_parts import Outcome, add_member, imported, picture
from typer.testing import CliRunner

from siclip.errors import UserError
from siclip_platform.cli import app
from siclip_platform.datasets.importing.parts import ImportConfig
from siclip_platform.datasets.importing.sources.splits import split_of

IMAGES = 24


def write_flickr(folder: Path, order: str) -> None:
    """Write a CSV with five rows for each image, either together or all first captions first."""
    folder.mkdir()
    for number in range(IMAGES):
        (folder / f"{number}.png").write_bytes(picture(number))
    rows = [(f"{i}.png", f"caption {k} of image {i}") for i in range(IMAGES) for k in range(5)]
    if order == "apart":
        rows.sort(key=lambda row: row[1].split()[1])
    pandas.DataFrame(rows, columns=["image", "caption"]).to_csv(folder / "captions.csv", index=False)


@pytest.mark.parametrize("order", ["together", "apart"])
@pytest.mark.parametrize("rows", [7, 1_000])
def test_five_rows_of_an_image_are_one_sample_in_one_split(order: str, rows: int, tmp_path: Path) -> None:
    write_flickr(tmp_path / "in", order)
    config = ImportConfig(validation_share=0.4, shard_rows=rows)
    found = imported(tmp_path / "in", tmp_path / "out", config, rows=rows)
    texts = sorted(sorted(captions) for captions in found.captions.values())
    assert texts == sorted([f"caption {k} of image {i}" for k in range(5)] for i in range(IMAGES))
    images = {split: {row["image"] for row in rows} for split, rows in found.rows.items()}
    assert not images["train"] & images["validation"]
    assert sum(len(part) for part in found.rows.values()) == IMAGES
    assert (found.imported.read, found.imported.merged) == (5 * IMAGES, 4 * IMAGES)
    assert not found.ledger


def test_rows_of_one_image_given_as_bytes_or_with_one_id_are_one_sample(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    table = {"image": [picture(0), picture(1), picture(0)], "id": ["a", "b", "a"], "text": ["x", "y", "z"]}
    pq.write_table(pa.table(table), tmp_path / "in/0.parquet", row_group_size=1)
    for rows in (1, 100):
        found = imported(tmp_path / "in", tmp_path / f"out{rows}", ImportConfig(shard_rows=rows), rows=rows)
        assert found.captions == {"a": ["x", "z"], "b": ["y"]}
        assert not found.ledger
    dropped = imported(tmp_path / "in", tmp_path / "dropped", ImportConfig(drop_duplicates=True))
    assert dropped.captions == {"a": ["x"], "b": ["y"]}
    assert len(dropped.ledger) == 1


def test_every_row_of_an_image_that_is_dropped_is_in_the_ledger(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    table = {"image": [picture(0), picture(1), picture(1)], "id": ["a", "a", "c"], "text": ["x", "y", "z"]}
    pq.write_table(pa.table(table), tmp_path / "in/0.parquet", row_group_size=1)
    for rows in (1, 2, 100):
        found = imported(tmp_path / "in", tmp_path / f"out{rows}", ImportConfig(shard_rows=rows), rows=rows)
        done = found.imported
        assert done.read == 3 == sum(map(len, found.rows.values())) + done.merged + len(found.ledger)
        texts = set(chain.from_iterable(found.captions.values()))
        assert texts | {row["id"] for row in found.ledger} >= {"x", "a"}


def test_equal_images_under_two_names_are_never_in_two_splits(tmp_path: Path) -> None:
    for number in range(30):
        for copy in "ab":
            name = f"in/{number}{copy}"
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / f"{name}.png").write_bytes(picture(number))
            (tmp_path / f"{name}.txt").write_text(f"copy {copy} of {number}")
    found = imported(tmp_path / "in", tmp_path / "out", ImportConfig(validation_share=0.5))
    assert sum(map(len, found.rows.values())) == 60
    assert not {row["image"] for row in found.rows["train"]} & {row["image"] for row in found.rows["validation"]}


def test_a_share_drawn_by_caption_has_no_caption_and_no_image_in_both_splits(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    rows = [{"path": f"{n}.png", "caption": [f"label {n // 3}", f"LABEL {n // 3}"]} for n in range(60)]
    rows[5]["caption"] = ["label 1", "label 7"]  # connects two groups
    for number in range(60):
        (tmp_path / f"in/{number}.png").write_bytes(picture(number))
    (tmp_path / "in/list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    splits = {}
    for size in (9, 1_000):
        config = ImportConfig(validation_share=0.4, share_by="caption", shard_rows=size)
        found = imported(tmp_path / "in", tmp_path / f"out{size}", config, rows=size)
        texts = {
            split: {caption["text"].lower() for row in part for caption in row["captions"]}
            for split, part in found.rows.items()
        }
        assert not texts["train"] & texts["validation"]
        assert 10 <= len(found.rows["validation"]) <= 40
        assert sum(map(len, found.rows.values())) == 60
        splits[size] = {row["id"] for row in found.rows["validation"]}
    assert splits[9] == splits[1_000]


def test_splits_of_files_folders_and_columns_are_kept(tmp_path: Path) -> None:
    def table(number: int) -> pa.Table:
        return pa.table({"image": [picture(number)], "text": [f"number {number}"], "id": [str(number)]})

    names = ("train-00000-of-00001", "test-00000-of-00001", "validation-00000-of-00001")
    (tmp_path / "hub/data").mkdir(parents=True)
    for number, name in enumerate(names):
        pq.write_table(table(number), tmp_path / f"hub/data/{name}.parquet")
    for number, folder in enumerate(("train", "test", "val", "dev2017")):
        for kind in ("folder", "lists", "tars"):
            (tmp_path / kind / folder).mkdir(parents=True)
        (tmp_path / "folder" / folder / "a.png").write_bytes(picture(number))
        (tmp_path / "folder" / folder / "a.txt").write_text(folder)
        (tmp_path / "lists" / folder / "a.png").write_bytes(picture(number))
        (tmp_path / "lists" / folder / "metadata.csv").write_text(f"file_name,text\na.png,{folder}\n")
        with tarfile.open(tmp_path / "tars" / folder / "00000.tar", "w") as tar:
            add_member(tar, f"{number}.png", picture(number))
            add_member(tar, f"{number}.txt", folder.encode())
    found = imported(tmp_path / "hub", tmp_path / "out-hub")
    assert {s: [r["id"] for r in rows] for s, rows in found.rows.items()} == {
        "train": ["0"],
        "test": ["1"],
        "validation": ["2"],
    }
    for kind in ("folder", "lists", "tars"):
        found = imported(tmp_path / kind, tmp_path / f"out-{kind}")
        texts = {s: {c["text"] for r in rows for c in r["captions"]} for s, rows in found.rows.items()}
        assert texts == {"train": {"train"}, "test": {"test"}, "validation": {"val", "dev2017"}}, kind
    apart = imported(tmp_path / "hub", tmp_path / "ignored", keep_splits=False)
    assert {s: len(rows) for s, rows in apart.rows.items()} == {"train": 3}
    with pytest.raises(UserError, match="--validation-share"):
        imported(tmp_path / "hub", tmp_path / "both", ImportConfig(validation_share=0.5))


def test_the_column_split_is_kept(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    values = ["train", "restval", "val", "test", None, "5 %"]
    rows = {"image": [picture(n) for n in range(6)], "text": list("abcdef"), "split": values}
    pq.write_table(pa.table(rows), tmp_path / "in/karpathy.parquet")
    found = imported(tmp_path / "in", tmp_path / "out")
    texts = {s: [c["text"] for r in part for c in r["captions"]] for s, part in found.rows.items()}
    assert texts == {"train": ["a", "b", "e"], "validation": ["c"], "test": ["d"]}
    assert found.reasons == {"damaged row": 1}


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("data/train-00000-of-00003.parquet", "train"),
        ("flickr8k_val.csv", "validation"),
        ("train2017/a.jpg", "train"),
        ("val/n01440764/ILSVRC2012_val_1.JPEG", "validation"),
        ("train-test-split.csv", None),
        ("latest/trained.csv", None),
        ("00000.tar", None),
        ("test/train/00000.tar", "train"),
    ],
)
def test_names_of_splits(path: str, split: str | None) -> None:
    assert split_of(path) == split


def write_tars(folder: Path, files: dict[str, range]) -> None:
    for name, numbers in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(folder / name, "w") as tar:
            for number in numbers:
                add_member(tar, f"{number:09d}.png", picture(number))
                add_member(tar, f"{number:09d}.txt", f"number {number}".encode())


def ids(outcome: Outcome) -> dict[str, list[int]]:
    return {split: sorted(int(row["id"]) for row in rows) for split, rows in outcome.rows.items()}


def test_patterns_put_files_into_splits_and_precede_what_the_source_names(tmp_path: Path) -> None:
    write_tars(tmp_path / "in", {"test/0.tar": range(3), "test/1.tar": range(3, 6), "b/7.tar": range(6, 9)})
    found = imported(tmp_path / "in", tmp_path / "a", splits=["train=test/*", "validation=7.tar"])
    assert ids(found) == {"train": list(range(6)), "validation": [6, 7, 8]}
    found = imported(tmp_path / "in", tmp_path / "b", splits=["validation=test/[1-9].tar", "held_out"])
    assert ids(found) == {"held_out": [0, 1, 2, 6, 7, 8], "validation": [3, 4, 5]}
    wrong = {
        ("train=test/*",): "7.tar is matched by no --split pattern",
        ("train=*.tar", "validation=0.tar"): "test/0.tar is matched by --split train=.* and --split validation=0.tar",
        ("train=*.tar", "validation=nosuch*"): "--split validation=nosuch. matches no file",
        ("train", "test"): "only one can take the files without a pattern",
        ("Train=*",): "write NAME or NAME=GLOB",
    }
    for splits, message in wrong.items():
        with pytest.raises(UserError, match=message):
            imported(tmp_path / "in", tmp_path / "c", splits=splits)
    # Images, lists and tables: a pattern is about files, and a column of splits does not change it.
    (tmp_path / "images/one").mkdir(parents=True)
    for number in range(4):
        (tmp_path / f"images/one/{number}.png").write_bytes(picture(number))
        (tmp_path / f"images/one/{number}.json").write_text(json.dumps({"caption": str(number)}))
    found = imported(tmp_path / "images", tmp_path / "d", splits=["validation=[01].png", "train=[23].png"])
    assert {split: len(rows) for split, rows in found.rows.items()} == {"validation": 2, "train": 2}
    rows = {"image": [picture(0)], "text": ["x"], "split": ["test"]}
    pq.write_table(pa.table(rows), tmp_path / "0.parquet")
    found = imported(tmp_path / "0.parquet", tmp_path / "e", splits=["train=*.parquet"])
    assert {split: len(rows) for split, rows in found.rows.items()} == {"train": 1}


def test_several_sources_and_patterns_of_files_are_one_dataset(tmp_path: Path) -> None:
    write_tars(tmp_path, {f"hub/cc12m-train-{n:04d}.tar": range(3 * n, 3 * n + 3) for n in range(4)})
    write_tars(tmp_path, {"other/shards/00000.tar": range(20, 22), "other/shards/val.tar": range(30, 32)})
    sources = [str(tmp_path / "hub/cc12m-train-000[0-2].tar"), str(tmp_path / "other")]
    found = imported(sources, tmp_path / "out")
    assert ids(found) == {"train": [*range(9), 20, 21], "validation": [30, 31]}
    sources = [str(tmp_path / "hub/cc12m-train-0000.tar"), str(tmp_path / "hub/cc12m-train-0003.tar")]
    assert ids(imported(sources, tmp_path / "two")) == {"train": [0, 1, 2, 9, 10, 11]}
    # Each list names the images beside it; equal names of files and rows do not collide.
    for folder, offset in (("a", 0), ("b", 10)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "list.csv").write_text("path,text\n0.png,x\n1.png,y\n2.png,z\n")
        for number in range(2):
            (tmp_path / folder / f"{number}.png").write_bytes(picture(offset + number))
    found = imported([str(tmp_path / "a"), str(tmp_path / "b")], tmp_path / "lists")
    assert sorted(found.captions) == [f"{folder}/list:{row}" for folder in "ab" for row in range(2)]
    assert {row["source"] for row in found.ledger} == {"a/list.csv", "b/list.csv"}
    with pytest.raises(UserError, match="nosuch-"):
        imported([str(tmp_path / "hub/nosuch-*")], tmp_path / "none")


@pytest.mark.parametrize("share_by", ["image", "caption"])
def test_validation_and_test_are_drawn_apart(share_by: Any, tmp_path: Path) -> None:
    write_tars(tmp_path / "in", {"00000.tar": range(60), "00001.tar": range(60, 120)})
    config = ImportConfig(validation_share=0.3, test_share=0.2, share_by=share_by, shard_rows=25)
    found = ids(imported(tmp_path / "in", tmp_path / "out", config))
    assert sorted(chain.from_iterable(found.values())) == list(range(120))
    assert 20 <= len(found["validation"]) <= 52 and 12 <= len(found["test"]) <= 36
    alone = config.model_copy(update={"test_share": 0.0})
    # The same images as without a share for test.
    assert ids(imported(tmp_path / "in", tmp_path / "alone", alone))["validation"] == found["validation"]
    write_tars(tmp_path / "named", {"test.tar": range(3)})
    with pytest.raises(UserError, match="--test-share, but test"):
        imported(tmp_path / "named", tmp_path / "both", ImportConfig(test_share=0.1))
    with pytest.raises(ValueError, match="leave nothing for training"):
        ImportConfig(validation_share=0.5, test_share=0.5)


def test_the_command_refuses_a_source_without_splits_and_takes_patterns_in_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    write_tars(tmp_path / "in", {"a.tar": range(3), "b.tar": range(3, 5)})

    def run(*words: str) -> Any:
        return CliRunner().invoke(app, ["data", "import", str(tmp_path / "in"), *words])

    refused = run(str(tmp_path / "out"))
    assert isinstance(refused.exception, UserError) and not (tmp_path / "out").exists()
    assert "names no splits" in str(refused.exception) and "--validation-share" in str(refused.exception)
    done = run(str(tmp_path / "out"), "--split", "train=a.tar", "validation=b.tar")
    assert done.exit_code == 0, done.output
    assert "3 train, 2 validation" in done.output
    for number, choice in enumerate((["--split", "train"], ["--no-keep-splits"], ["--test-share", "0.5"])):
        assert run(str(tmp_path / f"out{number}"), *choice).exit_code == 0
    assert isinstance(run("x=y", "--split", "train=a.tar").exception, UserError)
    wrong = run(str(tmp_path / "bad"), "--validation-share", "1.5")
    assert isinstance(wrong.exception, UserError) and "--validation-share" in str(wrong.exception)
