"""Captions in files are matched with a dataset's rows by a key; every row of the files is counted once."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from import_parts import add_member, imported, picture
from typer.testing import CliRunner

from siclip.data.captions import stable_id
from siclip.errors import UserError
from siclip.models.registry import model_config
from siclip.training.loop import Save
from siclip_platform.cli import app
from siclip_platform.datasets.importing.given import build
from siclip_platform.datasets.importing.parts import ImportConfig
from siclip_platform.datasets.manifest import open_dataset
from siclip_platform.datasets.sidecar import open_sidecar
from siclip_platform.recipes.control import DISTILLATION
from siclip_platform.recipes.digits import digits_student
from siclip_platform.stream.stream import Stream
from siclip_platform.stream.threads import thread_batches
from siclip_platform.training.in_process import run_recipe

ROWS = 30


def url(number: int) -> str:
    # Two images share an address.
    return f"http://images.example.org/{28 if number == 29 else number}.jpg"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards as img2dataset writes them: .json with url, key and the SHA-256 of the original."""
    folder = tmp_path_factory.mktemp("given")
    (folder / "in").mkdir()
    for shard in range(2):
        with tarfile.open(folder / f"in/cc12m-train-{shard:04d}.tar", "w") as tar:
            for number in range(15 * shard, 15 * shard + 15):
                digest = hashlib.sha256(str(number).encode()).hexdigest()
                meta = {"url": url(number), "key": f"{number:09d}", "status": "success", "sha256": digest}
                add_member(tar, f"{number:09d}.jpg", picture(number))
                add_member(tar, f"{number:09d}.txt", f"alt text {number}".encode())
                add_member(tar, f"{number:09d}.json", json.dumps(meta).encode())
    config = ImportConfig(shard_rows=11, row_group_rows=4, validation_share=0.3)
    imported(folder / "in", folder / "data", config, keep_splits=False)
    return folder / "data"


def command(data: Path, name: str, *more: str) -> Any:
    return CliRunner().invoke(app, ["data", "captions", str(data), "--name", name, *more])


def texts(data: Path, name: str) -> dict[str, list[tuple[str, str]]]:
    """Id → (text, model) of the set's captions, read beside the dataset's rows with pyarrow alone."""
    dataset = open_dataset(data)
    found = {}
    for split in dataset.split_names:
        for shard in dataset.shards(split):
            own = pq.read_table(shard)["id"].to_pylist()
            beside = pq.read_table(data / "captions" / name / shard.name)["captions"].to_pylist()
            for key, captions in zip(own, beside, strict=True):
                assert all(caption["source"] == "synthetic" for caption in captions)
                found[key] = [(caption["text"], caption["model"]) for caption in captions]
    return found


def test_a_csv_by_id_with_missing_repeated_and_foreign_keys(data: Path, tmp_path: Path) -> None:
    rows = [(f"{n:09d}", f"rewritten {n}", f"again,\n{n} in two lines") for n in range(0, 40, 2)]
    rows += [(f"{0:09d}", "rewritten 0", "another"), ("", "no key", "x"), (f"{1:09d}", " ", "")]
    frame = pandas.DataFrame(rows, columns=["image_id", "chatgpt", "bard"])
    frame.sample(frac=1, random_state=0).to_csv(tmp_path / "laclip.csv", index=False)
    options = ["--from", str(tmp_path / "laclip.csv"), "--key", "id", "--key-column", "image_id"]
    result = command(data, "laclip", *options, "--column", "chatgpt", "--column", "bard")
    assert result.exit_code == 0, result.output
    expected: dict[str, set[tuple[str, str]]] = {f"{n:09d}": set() for n in range(ROWS)}
    for key, first, second in rows[:-2]:
        if key in expected:
            expected[key] |= {(first, "chatgpt"), (" ".join(second.split()), "bard")}
    assert {key: set(found) for key, found in texts(data, "laclip").items()} == expected
    assert sum(map(len, expected.values())) == 31
    # 23 rows: 15 even ids below 30 and one of them twice, 5 above, one without key, one without caption.
    printed = " ".join(result.output.split())
    assert "23 rows read: 16 matched, 5 of other images, 2 without key or caption; 1 were further rows" in printed
    assert "31 captions of 15 images; 15 images keep their own alone" in printed
    again = command(data, "laclip", *options, "--column", "chatgpt", "--column", "bard")
    assert again.exit_code == 0 and " ".join(again.output.split()) == printed
    other = command(data, "laclip", *options, "--column", "chatgpt")
    assert isinstance(other.exception, UserError) and "differ in columns" in str(other.exception)


def test_json_lines_by_address_and_parquet_by_hash(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "PIECE_ROWS", 3)
    lines = [{"url": url(n), "caption_llava": [f"long {n}", f"longer {n}"]} for n in range(29)]
    lines[3] = {"url": url(3), "status": "failed"}
    text = "".join(json.dumps(line) + "\n" for line in lines) + "{broken\n"
    (tmp_path / "a").mkdir()
    (tmp_path / "a/0.jsonl.gz").write_bytes(gzip.compress(text[: text.index('{"url": "' + url(20))].encode()))
    (tmp_path / "a/1.jsonl.bz2").write_bytes(bz2.compress(text[text.index('{"url": "' + url(20)) :].encode()))
    (tmp_path / "a/notes.md").write_text("not captions")
    options = ["--key", "url", "--column", "caption_llava", "--model", "llava"]
    result = command(data, "llava", "--from", str(tmp_path / "a"), *options)
    assert result.exit_code == 0, result.output
    assert "30 rows read: 28 matched, 0 of other images, 2 without" in " ".join(result.output.split())
    expected = {f"{n:09d}": [(f"long {n}", "llava"), (f"longer {n}", "llava")] for n in range(29)}
    expected |= {"000000003": [], "000000029": [("long 28", "llava"), ("longer 28", "llava")]}
    assert texts(data, "llava") == expected

    digests = [hashlib.sha256(str(n).encode()).digest() for n in range(ROWS)]
    table = pa.table({"hash": digests, "text": [f"by hash {n}" for n in range(ROWS)]})
    pq.write_table(table, tmp_path / "b.parquet", row_group_size=7)
    options = ["--key", "sha256", "--key-column", "hash", "--column", "text", "--split", "train"]
    result = command(data, "hashed", "--from", str(tmp_path / "*.parquet"), *options)
    assert result.exit_code == 0, result.output
    dataset = open_dataset(data)
    assert list(open_sidecar(dataset, "captions", "hashed").manifest.splits) == ["train"]
    assert f"{dataset.rows('train')} matched, {dataset.rows('validation')} of other images" in result.output


def test_an_interrupted_match_resumes_and_gives_the_same_bytes(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in range(3):
        rows = [(f"{n:09d}", f"part {part} of {n}") for n in range(part, ROWS, 2)]
        pandas.DataFrame(rows, columns=["id", "text"]).to_csv(tmp_path / f"{part}.tsv", index=False, sep="\t")
    options = ["--from", str(tmp_path), "--key", "id", "--column", "text"]
    assert command(data, "whole", *options).exit_code == 0
    calls: list[str] = []
    original = build._Match.__call__

    def stops(self: Any, folder: Path, task: Any) -> Any:
        calls.append(task.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(self, folder, task)

    monkeypatch.setattr(build._Match, "__call__", stops)
    assert command(data, "stopped", *options).exit_code != 0
    assert command(data, "stopped", *options).exit_code == 0
    assert calls == ["00000", "00001", "00001", "00002"]
    for path in sorted((data / "captions/whole").glob("*.parquet")):
        assert path.read_bytes() == (data / "captions/stopped" / path.name).read_bytes()
    assert not list((data / "captions").glob(".stopped.found"))


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("key,text\n1,x\n", [], r"c.csv:1: there is no column 'id': it has key, text; name one with --key-column"),
        ("id,caption\n1,x\n", [], r"c.csv:1: there is no column 'text'.*--column"),
        ("id,text,text\n1,x,y\n", [], r"c.csv:1: the column 'text' occurs 2 times"),
        ("", [], r"has no header \(it is empty\)"),
        (
            "id,text\n7.jpg,x\n8.jpg,y\n",
            [],
            r"none of 2 rows has a key.*row 1 of .*c.csv has '7.jpg'.*is '0000000\d\d'",
        ),
        ("id,text\n,x\n", [], r"row 1 of .*c.csv cannot be used: there is no key in the column 'id'"),
        ("id,text\n000000001,x\n", ["--split", "nosuch"], "has no split 'nosuch'"),
    ],
)
def test_files_that_cannot_be_matched_are_refused(
    data: Path, tmp_path: Path, text: str, options: list[str], message: str
) -> None:
    (tmp_path / "c.csv").write_text(text)
    result = command(data, "bad", "--from", str(tmp_path / "c.csv"), "--key", "id", "--column", "text", *options)
    assert isinstance(result.exception, UserError)
    with pytest.raises(UserError, match=message):
        raise result.exception
    assert not (data / "captions/bad").exists() and not (data / "captions/.bad.found").exists()


def test_a_dataset_without_addresses_and_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    pandas.DataFrame({"image": ["a.png"], "text": ["x"]}).to_csv(tmp_path / "in/l.csv", index=False)
    (tmp_path / "in/a.png").write_bytes(picture(1))
    imported(tmp_path / "in", tmp_path / "data")
    (tmp_path / "c.jsonl").write_text('{"url": "http://a", "text": "x"}\n')
    options = ["--key", "url", "--column", "text"]
    result = command(tmp_path / "data", "c", "--from", str(tmp_path / "c.jsonl"), *options)
    assert "no row of" in str(result.exception) and "has a url" in str(result.exception)
    result = command(tmp_path / "data", "c", "--from", str(tmp_path / "no*.csv"), *options)
    assert "matches no file" in str(result.exception)
    buffer = io.BytesIO(gzip.compress(b'{"url": "http://a", "text": "x"}\n' * 1000))
    (tmp_path / "cut.jsonl.gz").write_bytes(buffer.getvalue()[:-20])
    result = command(tmp_path / "data", "c", "--from", str(tmp_path / "cut.jsonl.gz"), *options)
    assert isinstance(result.exception, UserError), result.output


class Losses:
    def __init__(self) -> None:
        self.values: list[float] = []

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.values += [metrics["train/loss"]] if "train/loss" in metrics else []

    def milestone(self, step: int, metrics: Mapping[str, float], save: Save | None) -> None: ...


def test_the_hub_copy_with_given_captions_trains_two_steps(data: Path, tmp_path: Path) -> None:
    dataset = open_dataset(data)
    assert dataset.rows("train") + dataset.rows("validation") == ROWS
    rows = [(f"{n:09d}", f"given {n}") for n in range(ROWS)]
    pandas.DataFrame(rows, columns=["id", "text"]).to_csv(tmp_path / "c.csv", index=False)
    result = command(data, "given", "--from", str(tmp_path / "c.csv"), "--key", "id", "--column", "text")
    assert result.exit_code == 0, result.output
    recipe = digits_student(data, steps=2).updated(
        {
            "data.captions": ["given"],
            "data.synthetic_share": 1.0,
            "data.window_row_groups": 4,
            "model.inherit": False,
            "loss": {**dict.fromkeys(DISTILLATION, 0.0), "contrastive": 1.0},
            "training.batch_size": 8,
            "training.log_every": 1,
            "training.evaluate_every": 0,
        }
    )
    # Every caption of a batch is a given one.
    [batch, *_] = thread_batches(Stream.of(recipe, model_config("siclip-nano")), 8, 0, 16)
    assert set(batch.caption_ids.tolist()) <= {stable_id(text) for _, text in rows}
    record = Losses()
    run_recipe(recipe, record)
    assert len(record.values) == 2 and np.isfinite(record.values).all()
