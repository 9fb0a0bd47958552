from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from siclip.errors import UserError
from siclip_platform.datasets.manifest import Manifest, open_dataset, write_manifest, write_shard
from siclip_platform.datasets.schema import SCHEMA


def rows(count: int, first: int = 0) -> pa.Table:
    captions = [{"text": "a cat", "source": "original", "model": None}]
    return pa.Table.from_pylist(
        [
            {"id": str(first + n), "image": b"x" * 50, "width": 4, "height": 4, "captions": captions}
            for n in range(count)
        ],
        SCHEMA,
    )


def build(folder: Path) -> Manifest:
    folder.mkdir()
    train = [write_shard(rows(7, 10 * n), folder / f"train-{n}.parquet", 3) for n in range(2)]
    test = [write_shard(rows(2, 90), folder / "test-0.parquet", 3)]
    manifest = Manifest(name="cats", version="1", recipe={"seed": 0}, splits={"train": train, "test": test})
    write_manifest(folder, manifest)
    return manifest


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as error:
        open_dataset(folder)
    return str(error.value)


def test_a_written_dataset_is_opened(tmp_path: Path) -> None:
    manifest = build(tmp_path / "cats")
    dataset = open_dataset(tmp_path / "cats")
    assert dataset.manifest == manifest
    assert dataset.hash == manifest.hash
    assert dataset.split_names == ["train", "test"]
    assert (dataset.rows("train"), dataset.rows("test")) == (14, 2)
    assert pa.concat_tables(pq.read_table(path) for path in dataset.shards("train")).equals(
        pa.concat_tables([rows(7), rows(7, 10)])
    )
    assert sorted(path.name for path in (tmp_path / "cats").iterdir()) == [
        "manifest.json",
        "test-0.parquet",
        "train-0.parquet",
        "train-1.parquet",
    ]


def test_an_entry_describes_the_file(tmp_path: Path) -> None:
    entry = write_shard(rows(7), tmp_path / "a.parquet", 3)
    payload = (tmp_path / "a.parquet").read_bytes()
    assert entry.path == "a.parquet"
    assert (entry.rows, entry.row_groups, entry.bytes) == (7, 3, len(payload))
    assert entry.sha256 == hashlib.sha256(payload).hexdigest()
    assert write_shard(rows(7), tmp_path / "b.parquet", 3).sha256 == entry.sha256


def test_a_refused_shard_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="id used more than once"):
        write_shard(pa.concat_tables([rows(1), rows(1)]), tmp_path / "a.parquet", 3)
    assert list(tmp_path.iterdir()) == []


def test_the_hash_depends_on_the_content_and_not_on_the_path(tmp_path: Path) -> None:
    manifest = build(tmp_path / "cats")
    expected = hashlib.sha256(
        json.dumps(json.loads((tmp_path / "cats/manifest.json").read_text()), sort_keys=True)
        .replace(", ", ",")
        .replace(": ", ":")
        .encode()
    ).hexdigest()[:16]
    assert manifest.hash == expected
    shutil.move(tmp_path / "cats", tmp_path / "moved")
    assert open_dataset(tmp_path / "moved").hash == expected
    assert manifest.model_copy(update={"recipe": {"seed": 1}}).hash != expected


def test_an_unknown_split_lists_the_existing_ones(tmp_path: Path) -> None:
    build(tmp_path / "cats")
    with pytest.raises(UserError, match=r"no split 'val': it has train, test"):
        open_dataset(tmp_path / "cats").shards("val")


def test_a_missing_folder_a_file_and_a_foreign_folder_have_their_own_messages(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "photos").mkdir()
    assert "does not exist" in refusal(tmp_path / "nowhere")
    assert "is a file" in refusal(tmp_path / "file")
    assert "contains no manifest.json" in refusal(tmp_path / "photos")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("{", "Invalid JSON"),
        ("[]", "(file)"),
        ('{"name": "a", "version": "1", "recipe": {}}', "splits"),
        (
            '{"name": "a", "version": "1", "recipe": {}, "splits": {"train": [{"path": "../x", "rows": 1,'
            ' "bytes": 1, "row_groups": 1, "sha256": "' + "0" * 64 + '"}]}}',
            "splits.train.0.path",
        ),
    ],
)
def test_an_unreadable_manifest_is_named(tmp_path: Path, text: str, part: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    message = refusal(tmp_path)
    assert str(tmp_path / "manifest.json") in message
    assert part in message


def test_damaged_shards_are_named(tmp_path: Path) -> None:
    manifest = build(tmp_path / "cats")
    shard = tmp_path / "cats" / "train-1.parquet"
    payload = shard.read_bytes()

    shard.write_bytes(payload[:-1])
    message = refusal(tmp_path / "cats")
    assert str(shard) in message
    assert f"{len(payload) - 1} bytes, but its manifest lists {len(payload)}" in message

    # The right size, but no Parquet file.
    shard.write_bytes(bytes(len(payload)))
    assert "not a readable Parquet file" in refusal(tmp_path / "cats")

    shard.unlink()
    assert f"shard {shard} is missing" in refusal(tmp_path / "cats")

    pq.write_table(rows(7).drop_columns("meta"), shard)
    entry = manifest.splits["train"][1].model_copy(update={"bytes": shard.stat().st_size})
    splits = {**manifest.splits, "train": [manifest.splits["train"][0], entry]}
    write_manifest(tmp_path / "cats", manifest.model_copy(update={"splits": splits}))
    assert "missing column 'meta'" in refusal(tmp_path / "cats")

    pq.write_table(rows(6), shard)
    entry = entry.model_copy(update={"bytes": shard.stat().st_size})
    splits = {**manifest.splits, "train": [manifest.splits["train"][0], entry]}
    write_manifest(tmp_path / "cats", manifest.model_copy(update={"splits": splits}))
    assert "6 rows in 1 row groups, but its manifest lists 7 in 3" in refusal(tmp_path / "cats")
