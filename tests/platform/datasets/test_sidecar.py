"""Sidecars have the rows of their dataset, and are refused if they differ."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from siclip.errors import UserError
from siclip_platform.datasets.manifest import Dataset, Manifest, open_dataset, write_manifest, write_shard
from siclip_platform.datasets.schema import SCHEMA
from siclip_platform.datasets.sidecar import (
    CAPTIONS_SCHEMA,
    Sidecar,
    SidecarManifest,
    open_sidecar,
    sidecar_folder,
    sidecar_names,
    write_sidecar_manifest,
    write_sidecar_shard,
)

ROWS = (5, 3)


def dataset(folder: Path, seed: int = 0) -> Dataset:
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for shard, rows in enumerate(ROWS):
        captions = [{"text": "a", "source": "original", "model": None}]
        sample = {"image": b"x", "width": 1, "height": 1, "captions": captions, "category": None, "meta": None}
        samples = [{"id": f"{shard}/{row}", **sample} for row in range(rows)]
        table = pa.Table.from_pylist(samples, SCHEMA)
        entries.append(write_shard(table, folder / f"train-{shard}.parquet", row_group_size=2))
    write_manifest(folder, Manifest(name="d", version="1", recipe={"seed": seed}, splits={"train": entries}))
    return open_dataset(folder)


def groups(shard: int, sizes: list[int] | None = None) -> list[pa.Table]:
    sizes = sizes or [2] * (ROWS[shard] // 2) + [1] * (ROWS[shard] % 2)
    rows = iter(range(sum(sizes)))
    return [
        pa.Table.from_pylist(
            [
                {"captions": [{"text": f"{shard}/{next(rows)}", "source": "synthetic", "model": "m"}]}
                for _ in range(size)
            ],
            CAPTIONS_SCHEMA,
        )
        for size in sizes
    ]


def sidecar(data: Dataset, name: str = "one") -> Path:
    folder = sidecar_folder(data.folder, "captions", name)
    folder.mkdir(parents=True)
    entries = [
        write_sidecar_shard(folder / f"train-{shard}.parquet", groups(shard), CAPTIONS_SCHEMA) for shard in (0, 1)
    ]
    manifest = SidecarManifest(
        kind="captions", name=name, version="1", dataset=data.hash, recipe={}, splits={"train": entries}
    )
    write_sidecar_manifest(folder, manifest)
    return folder


def test_a_row_group_has_the_rows_of_the_datasets(tmp_path: Path) -> None:
    data = dataset(tmp_path)
    sidecar(data)
    opened: Sidecar = pickle.loads(pickle.dumps(open_sidecar(data, "captions", "one")))
    for shard, path in enumerate(data.shards("train")):
        with pq.ParquetFile(path) as file:
            for index in range(file.num_row_groups):
                ids = file.read_row_group(index)["id"].to_pylist()
                found = opened.read("train", shard, index, ["captions"])["captions"].to_pylist()
                assert [row[0]["text"] for row in found] == ids
    assert sidecar_names(tmp_path, "captions") == ["one"] and not sidecar_names(tmp_path, "embeddings")
    assert open_dataset(tmp_path).hash == data.hash


def test_equal_tables_give_equal_bytes(tmp_path: Path) -> None:
    one, two = (write_sidecar_shard(tmp_path / name, groups(0), CAPTIONS_SCHEMA) for name in ("a", "b"))
    assert (one.sha256, one.rows, one.row_groups) == (two.sha256, 5, 3)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def _another_dataset(data: Dataset, folder: Path) -> Dataset:
    return dataset(data.folder, seed=1)


def _truncated(data: Dataset, folder: Path) -> None:
    shard = folder / "train-1.parquet"
    shard.write_bytes(shard.read_bytes()[:-1])


def _missing(data: Dataset, folder: Path) -> None:
    (folder / "train-1.parquet").unlink()


def _regrouped(data: Dataset, folder: Path) -> None:
    entry = write_sidecar_shard(folder / "train-0.parquet", groups(0, [3, 2]), CAPTIONS_SCHEMA)
    tree = json.loads((folder / "manifest.json").read_text())
    tree["splits"]["train"][0] = entry.model_dump()
    (folder / "manifest.json").write_text(json.dumps(tree))


def _one_shard_fewer(data: Dataset, folder: Path) -> None:
    tree = json.loads((folder / "manifest.json").read_text())
    del tree["splits"]["train"][1]
    (folder / "manifest.json").write_text(json.dumps(tree))


def _no_manifest(data: Dataset, folder: Path) -> None:
    (folder / "manifest.json").unlink()


def _moved(data: Dataset, folder: Path) -> None:
    # The manifest of another sidecar with a valid content.
    folder.rename(folder.parent / "two")
    sidecar(data)
    (folder.parent / "two").rename(folder.parent / "three")
    (folder.parent / "three" / "manifest.json").replace(folder / "manifest.json")
    tree = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(tree | {"name": "three"}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_another_dataset, "was built for the dataset with manifest"),
        (_truncated, "bytes, but its manifest lists"),
        (_missing, "is missing"),
        (_regrouped, r"row groups of \[3, 2\] rows"),
        (_one_shard_fewer, "does not list the shards"),
        (_no_manifest, "no finished captions 'one'"),
        (_moved, "rename the folder back"),
    ],
)
def test_a_sidecar_that_differs_from_the_dataset_is_refused(
    tmp_path: Path, damage: Callable[[Dataset, Path], Dataset | None], message: str
) -> None:
    data = dataset(tmp_path)
    folder = sidecar(data)
    data = damage(data, folder) or data
    with pytest.raises(UserError, match=message):
        open_sidecar(data, "captions", "one")


def test_unknown_names_and_splits_are_refused(tmp_path: Path) -> None:
    data = dataset(tmp_path)
    sidecar(data)
    with pytest.raises(UserError, match="it has one"):
        open_sidecar(data, "captions", "two")
    with pytest.raises(UserError, match="is not a valid name"):
        open_sidecar(data, "captions", "../one")
    with pytest.raises(UserError, match="has no split 'test'"):
        open_sidecar(data, "captions", "one").shards("test")
