"""Trunk caches: their key, and builds that are complete, killed, damaged or concurrent."""

from __future__ import annotations

import fcntl
import shutil
import threading
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from siclip.checkpoints.formats import load_model
from siclip.checkpoints.inherit import inherit
from siclip.errors import UserError
from siclip.models import create_model
from siclip.models.clip import Clip
from siclip_platform.datasets.manifest import MANIFEST, Manifest, open_dataset, write_manifest
from siclip_platform.stream.trunk_features import (
    TrunkCache,
    TrunkCacheKey,
    build_trunk_cache,
    open_trunk_cache,
    trunk_hash,
)
from siclip_platform.stream.trunk_features.sources import random_crop

ROWS = 40  # of the validation split, in one shard
IMAGE_BYTES, TEXT_BYTES = 128 * 4 * 4 * 2, 20 * 96 * 2


@pytest.fixture(scope="module")
def teacher(nano_teacher: Path) -> Clip:
    return load_model(nano_teacher)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten images per shard."""
    monkeypatch.setattr("siclip_platform.stream.trunk_features.build.SHARD_BYTES", 10 * IMAGE_BYTES)


def captions(digits: Path) -> set[str]:
    rows = [row for shard in digits.glob("validation-*") for row in pq.read_table(shard).to_pylist()]
    return {caption["text"] for row in rows for caption in row["captions"]}


def inodes(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of each shard: they change when it is written again."""
    stats = {path.name: path.stat() for path in folder.glob("*.safetensors")}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in stats.items()}


def test_a_student_that_inherited_has_its_teachers_hash(teacher: Clip) -> None:
    student = create_model("siclip-nano")
    assert trunk_hash(student) != trunk_hash(teacher)
    inherit(student, teacher)
    assert trunk_hash(student.train().to(memory_format=torch.channels_last)) == trunk_hash(teacher)


@pytest.mark.parametrize(
    "name", ["image_encoder.model.stages.2.pos_emb.", "text_encoder.embedding_layer.", "text_encoder.transformer.0."]
)
def test_every_weight_and_statistic_of_the_trunk_changes_the_hash(teacher: Clip, name: str) -> None:
    before = trunk_hash(teacher)
    tensors = {key: value for key, value in teacher.state_dict().items() if key.startswith(name)}
    for key, tensor in tensors.items():
        if not key.endswith("num_batches_tracked"):
            kept = tensor.clone()
            tensor.add_(1)
            changed = trunk_hash(teacher)
            tensor.copy_(kept)
            assert changed != before, key
    assert tensors and trunk_hash(teacher) == before


def test_what_is_not_in_the_trunk_does_not_change_the_hash(teacher: Clip) -> None:
    trunk = {
        id(p)
        for e in (teacher.image_encoder, teacher.text_encoder)
        for m in e.trunk_modules()
        for p in m.parameters()
    }
    changed = Clip(teacher.config)
    state = {key: value.clone() for key, value in teacher.state_dict().items()}
    outside = [name for name, parameter in teacher.named_parameters() if id(parameter) not in trunk]
    for name in outside:
        state[name] += 1
    for name in state:
        if name.endswith("num_batches_tracked"):
            state[name] += 1
    changed.load_state_dict(state)
    assert len(outside) > 20 and trunk_hash(changed) == trunk_hash(teacher)


def test_a_complete_cache_is_reused(digits: Path, teacher: Clip, tmp_path: Path) -> None:
    reports: list[tuple[int, int]] = []
    cache = build_trunk_cache(teacher, digits, "validation", tmp_path, progress=lambda *a: reports.append(a))
    assert reports[-1] == (ROWS + len(captions(digits)),) * 2
    assert all(a < b for a, b in pairwise(reports))
    files = inodes(cache.folder)
    count = len(reports)
    assert build_trunk_cache(teacher, digits, "validation", tmp_path, progress=lambda *a: reports.append(a)) == cache
    assert open_trunk_cache(cache.folder, verify=True) == cache
    assert len(reports) == count and inodes(cache.folder) == files


def test_the_key_changes_with_everything_that_the_features_depend_on(
    digits: Path, teacher: Clip, tmp_path: Path
) -> None:
    def key(model: Clip = teacher, folder: Path = digits, split: str = "validation", **options: int) -> str:
        return TrunkCacheKey.of(model, open_dataset(folder), split, **options).hash

    other = tmp_path / "digits"
    shutil.copytree(digits, other)
    manifest = (other / MANIFEST).read_text()
    (other / MANIFEST).write_text(manifest.replace('"version": "1"', '"version": "2"'))
    larger = create_model("mobileclip-nano", image={"image_size": 96})
    larger.load_state_dict(teacher.state_dict())
    assert trunk_hash(larger) != trunk_hash(teacher)
    keys = [
        key(),
        key(create_model("mobileclip-nano")),
        key(larger),
        key(create_model("mobileclip-nano", text={"context_length": 24})),
        key(folder=other),
        key(split="test"),
        key(augmentations=2),
        key(augmentations=2, augmentation_seed=1),
        key(augmentations=3),
    ]
    assert len(set(keys)) == len(keys)
    assert key(augmentation_seed=1) == keys[0]
    assert build_trunk_cache(teacher, digits, "validation", tmp_path).folder == tmp_path / f"trunk-{keys[0]}"


def test_a_killed_build_computes_at_most_one_shard_again(
    digits: Path, teacher: Clip, tmp_path: Path, small_shards: None
) -> None:
    def die(done: int, total: int) -> None:
        if done > 25:  # in the third shard of ten
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_trunk_cache(teacher, digits, "validation", tmp_path, batch=4, progress=die)
    (folder,) = tmp_path.iterdir()
    remaining = inodes(folder)
    assert sorted(remaining) == ["images-00000.safetensors", "images-00001.safetensors"]
    assert not (folder / MANIFEST).exists()
    (folder / ".images-00002.safetensors.1.tmp").write_bytes(b"half")
    reports: list[int] = []
    cache = build_trunk_cache(
        teacher, digits, "validation", tmp_path, batch=4, progress=lambda done, _: reports.append(done)
    )
    assert reports[0] == 24 and remaining.items() <= inodes(cache.folder).items()
    assert not list(folder.glob(".*.tmp"))
    whole = build_trunk_cache(teacher, digits, "validation", tmp_path / "whole", batch=4)
    assert cache.manifest == whole.manifest


def test_damaged_and_missing_shards_are_computed_again(
    digits: Path, teacher: Clip, tmp_path: Path, small_shards: None
) -> None:
    cache = build_trunk_cache(teacher, digits, "validation", tmp_path)
    before = inodes(cache.folder)
    cut, gone, flipped = (f"{name}.safetensors" for name in ("images-00001", "texts-00000", "images-00003"))
    (cache.folder / cut).write_bytes((cache.folder / cut).read_bytes()[:-1])
    (cache.folder / gone).unlink()
    with pytest.raises(UserError, match=rf"2 missing or damaged shards \({cut}, {gone}\)"):
        open_trunk_cache(cache.folder)
    assert build_trunk_cache(teacher, digits, "validation", tmp_path) == cache
    assert set(before.items()) - set(inodes(cache.folder).items()) == {(name, before[name]) for name in (cut, gone)}

    content = bytearray((cache.folder / flipped).read_bytes())
    content[-1] ^= 1
    (cache.folder / flipped).write_bytes(content)
    assert open_trunk_cache(cache.folder) == cache
    with pytest.raises(UserError, match=flipped):
        open_trunk_cache(cache.folder, verify=True)
    assert build_trunk_cache(teacher, digits, "validation", tmp_path, verify=True) == cache
    assert open_trunk_cache(cache.folder, verify=True) == cache


def test_an_invalid_manifest_is_written_again(digits: Path, teacher: Clip, tmp_path: Path) -> None:
    cache = build_trunk_cache(teacher, digits, "validation", tmp_path)
    files = inodes(cache.folder)
    (cache.folder / MANIFEST).write_text("{")
    with pytest.raises(UserError, match="not a complete trunk cache"):
        open_trunk_cache(cache.folder)
    assert build_trunk_cache(teacher, digits, "validation", tmp_path) == cache
    assert inodes(cache.folder) == files


def test_too_little_disk_space_is_an_error_before_anything_is_computed(
    digits: Path, teacher: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = len(captions(digits))
    needed = 3 * ROWS * IMAGE_BYTES + texts * TEXT_BYTES
    reports: list[int] = []

    def build(free: int) -> TrunkCache:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
        return build_trunk_cache(
            teacher, digits, "validation", tmp_path, augmentations=3, progress=lambda done, _: reports.append(done)
        )

    sizes = rf"40 images × 3 crops × {IMAGE_BYTES} bytes, {texts} captions × {TEXT_BYTES} bytes"
    with pytest.raises(UserError, match=sizes):
        build(needed - 1)
    assert not reports
    cache = build(needed)
    (cache.folder / "images-00000.safetensors").unlink()
    reports.clear()
    with pytest.raises(UserError, match="still to be written"):
        build(3 * ROWS * IMAGE_BYTES // 2)
    assert build(4 * ROWS * IMAGE_BYTES) == cache  # the captions exist already


def test_a_second_build_waits_and_computes_nothing(
    digits: Path, nano_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports: list[str] = []
    caches: list[TrunkCache] = []
    waits = threading.Event()

    def build(name: str) -> None:
        def progress(done: int, total: int) -> None:
            if not reports:
                second.start()
                assert waits.wait(60)
            reports.append(name)

        caches.append(build_trunk_cache(load_model(nano_teacher), digits, "validation", tmp_path, progress=progress))

    def flock(file: object, operation: int) -> None:
        if threading.current_thread() is second:
            waits.set()
        lock(file, operation)

    lock = fcntl.flock
    second = threading.Thread(target=build, args=("second",))
    monkeypatch.setattr(fcntl, "flock", flock)
    build("first")
    second.join()
    assert set(reports) == {"first"} and caches[0] == caches[1]


def test_a_crop_keeps_at_least_nine_tenths_of_the_image() -> None:
    ramp = np.linspace(0, 255, 200).astype(np.uint8)
    image = np.stack([*np.broadcast_arrays(ramp[:, None], ramp[None, :]), np.zeros((200, 200), np.uint8)], axis=2)
    areas = []
    for seed in range(50):
        crop = random_crop(image, 64, seed).astype(float)
        assert crop.shape == (64, 64, 3)
        height, width = (crop[-1, 0, 0] - crop[0, 0, 0]) / 255, (crop[0, -1, 1] - crop[0, 0, 1]) / 255
        areas.append(height * width * (64 / 63) ** 2)  # from the first pixel's centre to the last one's
        assert np.array_equal(random_crop(image, 64, seed), crop)
    assert 0.88 < min(areas) < 0.93 and 0.97 < max(areas) < 1.02


def test_bad_options_are_refused(digits: Path, teacher: Clip, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least 1 variant"):
        build_trunk_cache(teacher, digits, "train", tmp_path, augmentations=0)
    with pytest.raises(UserError, match="no split 'trian'"):
        build_trunk_cache(teacher, digits, "trian", tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot store trunk features"):
        build_trunk_cache(teacher, digits, "validation", tmp_path / "file")
    write_manifest(tmp_path, Manifest(name="empty", version="1", recipe={}, splits={"train": []}))
    with pytest.raises(UserError, match="has no samples"):
        build_trunk_cache(teacher, tmp_path, "train", tmp_path)
