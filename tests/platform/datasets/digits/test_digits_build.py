"""Building digit scenes: reuse, refusals, and the same bytes with and without Ray Data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from siclip.errors import UserError
from siclip_platform.datasets.digits import digits
from siclip_platform.datasets.digits.digits import DigitScenesConfig, build_digit_scenes, compose_shard, shard_specs
from siclip_platform.datasets.manifest import ShardEntry, open_dataset, write_shard

SMALL = DigitScenesConfig(train_scenes=300, validation_scenes=100, test_scenes=250, shard_rows=100, row_group_rows=40)


def in_process(folder: Path, config: DigitScenesConfig) -> dict[str, ShardEntry]:
    return {
        spec.file_name: write_shard(compose_shard(spec), folder / spec.file_name, config.row_group_rows)
        for spec in shard_specs(config)
    }


TINY = SMALL.model_copy(update={"train_scenes": 30, "validation_scenes": 5, "test_scenes": 5, "shard_rows": 10})


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Replace the Ray Data step of the build by a loop; return the number of shards of each call."""
    calls: list[int] = []

    def write(folder: Path, specs: Any, progress: Any) -> dict[str, ShardEntry]:
        calls.append(len(specs))
        return in_process(folder, specs[0].config)

    monkeypatch.setattr(digits, "_write_shards", write)
    return calls


def test_a_finished_build_is_reused_and_another_recipe_is_refused(tmp_path: Path, without_ray: list[int]) -> None:
    built = build_digit_scenes(tmp_path / "a", TINY)
    assert build_digit_scenes(tmp_path / "a", TINY).hash == built.hash
    assert without_ray == [5]
    assert build_digit_scenes(tmp_path / "b", TINY).hash == built.hash
    other = TINY.model_copy(update={"seed": 1})
    assert build_digit_scenes(tmp_path / "c", other).hash != built.hash
    with pytest.raises(UserError, match="another recipe"):
        build_digit_scenes(tmp_path / "a", other)
    assert open_dataset(tmp_path / "a").hash == built.hash


def test_foreign_files_are_refused_and_kept(tmp_path: Path, without_ray: list[int]) -> None:
    (tmp_path / "train-00000.parquet").write_text("mine")
    with pytest.raises(UserError, match="is not empty and not a dataset"):
        build_digit_scenes(tmp_path, TINY)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("train-00000.parquet", "mine")]
    with pytest.raises(UserError, match="folder that can be written"):
        build_digit_scenes(tmp_path / "train-00000.parquet", TINY)


def test_a_killed_build_leaves_no_manifest_and_restarts_from_scratch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = TINY.model_copy(update={"train_scenes": 50})

    def die(folder: Path, specs: Any, progress: Any) -> dict[str, ShardEntry]:
        in_process(folder, more)
        # Left behind by a process that was killed inside `replacing`.
        (folder / ".train-00007.parquet.123.tmp").write_text("half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(digits, "_write_shards", die)
        build_digit_scenes(tmp_path / "a", more)
    with pytest.raises(UserError, match=r"contains no manifest\.json"):
        open_dataset(tmp_path / "a")
    # With fewer shards than the killed build, whose additional files must go.
    monkeypatch.setattr(digits, "_write_shards", lambda folder, specs, progress: in_process(folder, TINY))
    rebuilt = build_digit_scenes(tmp_path / "a", TINY)
    assert rebuilt.hash == build_digit_scenes(tmp_path / "b", TINY).hash
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert names == {path.name for path in (tmp_path / "b").iterdir()}


@pytest.fixture(scope="module")
def ray_started() -> Iterator[None]:
    import logging

    import ray

    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()


@pytest.mark.slow
def test_ray_data_writes_the_same_bytes_as_one_process(tmp_path: Path, ray_started: None) -> None:
    seen: list[tuple[int, int]] = []
    dataset = build_digit_scenes(tmp_path / "ray", SMALL, lambda done, total: seen.append((done, total)))
    (tmp_path / "plain").mkdir()
    entries = in_process(tmp_path / "plain", SMALL)
    assert {entry.path: entry for split in dataset.split_names for entry in dataset.entries(split)} == entries
    for name in entries:
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    assert seen[-1] == (650, 650)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    table = pa.concat_tables(pq.read_table(path) for path in dataset.shards("test"))
    assert table["id"].to_pylist() == [f"test-{number:06d}" for number in range(250)]
    assert dataset.entries("test")[0].row_groups == 3
