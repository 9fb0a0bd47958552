"""Stored embeddings equal those that the teacher computes in training for the same crop and caption."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from captioning_parts import shapes_dataset
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resized_crop
from typer.testing import CliRunner

from siclip.checkpoints.formats import load_model
from siclip.data.batch import Batch
from siclip.data.images import decode_image
from siclip.errors import UserError
from siclip.losses import Embeddings
from siclip.teachers import ModelTeacher, OpenClipTeacher, Teacher
from siclip.tokenizer import tokenize
from siclip_platform.cli.data import app
from siclip_platform.datasets.derived.embeddings import steps
from siclip_platform.datasets.derived.embeddings.config import EmbedConfig
from siclip_platform.datasets.derived.embeddings.embed import embed_dataset, plan_embedding
from siclip_platform.datasets.derived.embeddings.layout import EmbeddingLayout
from siclip_platform.datasets.derived.stage import Pool, Task
from siclip_platform.datasets.manifest import open_dataset
from siclip_platform.datasets.schema import SCHEMA
from siclip_platform.datasets.sidecar import (
    CAPTIONS_SCHEMA,
    SidecarManifest,
    open_sidecar,
    sidecar_folder,
    write_sidecar_manifest,
    write_sidecar_shard,
)

HERE = Pool(here=True)
CROPS = 2
TINY: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 48, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    """The smallest split of the digit scenes, with an additional synthetic caption for every second row."""
    folder = tmp_path_factory.mktemp("embed") / "digits"
    folder.mkdir()
    for path in digits.iterdir():
        (folder / path.name).symlink_to(path)
    dataset = open_dataset(folder)
    beside = sidecar_folder(folder, "captions", "more")
    beside.mkdir(parents=True)
    entries = []
    for shard, groups in zip(dataset.shards("validation"), dataset.groups("validation"), strict=True):
        tables = [
            pa.Table.from_pylist([{"captions": captions(row)} for row in range(rows)], CAPTIONS_SCHEMA)
            for rows in groups
        ]
        entries.append(write_sidecar_shard(beside / shard.name, tables, CAPTIONS_SCHEMA))
    write_sidecar_manifest(
        beside,
        SidecarManifest(
            kind="captions", name="more", version="1", dataset=dataset.hash, recipe={}, splits={"validation": entries}
        ),
    )
    return folder


def captions(row: int) -> list[dict[str, str]]:
    return [{"text": f"synthetic words {row}", "source": "synthetic", "model": "m"}] if row % 2 else []


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory, nano_teacher: Path) -> dict[str, tuple[str, Teacher]]:
    """Kind → (name in a command, the teacher that training builds)."""
    folder = tmp_path_factory.mktemp("open_clip")
    (folder / "tiny_embed.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(folder / "tiny_embed.json")
    torch.manual_seed(6)
    torch.save(open_clip.create_model("tiny_embed").state_dict(), folder / "tiny.pt")
    tiny = folder / "tiny.pt"
    return {
        "ours": (str(nano_teacher), ModelTeacher(load_model(nano_teacher))),
        "open_clip": (f"open_clip:tiny_embed:{tiny}", OpenClipTeacher("tiny_embed", str(tiny))),
    }


def embed(data: Path, name: str, teacher: str, **settings: Any) -> Any:
    config = EmbedConfig(teacher=teacher, augmentations=CROPS, captions=("more",), **settings)
    return embed_dataset(plan_embedding(data, name, config, ["validation"]), pool=HERE)


def online(teacher: Teacher, pixels: np.ndarray, boxes: np.ndarray, texts: list[str], side: int) -> Embeddings:
    """Embed crops built by torchvision at the student's size, and captions at the student's context length."""
    image = Image.fromarray(pixels)
    crops = [resized_crop(image, *map(int, box), [side, side], InterpolationMode.BILINEAR) for box in boxes]
    images = torch.from_numpy(np.stack([np.asarray(crop) for crop in crops]))
    ids = torch.zeros(len(texts), dtype=torch.int64)
    return teacher.embed(Batch(images, tokenize(texts, 77), ids, ids), None)


@pytest.mark.slow
@pytest.mark.parametrize("numbers", ["bf16", "int8"])
@pytest.mark.parametrize(("kind", "side"), [("ours", None), ("open_clip", 48), ("open_clip", 64)])
def test_stored_embeddings_are_those_of_training(
    data: Path, teachers: Any, kind: str, side: int | None, numbers: str
) -> None:
    name, teacher = teachers[kind]
    built = embed(data, f"{kind}-{side}-{numbers}", name, numbers=numbers, image_size=side, crop_scale=0.5)
    layout = EmbeddingLayout.of(built.sidecar.manifest)
    size = side or layout.image_size[0]
    dataset = open_dataset(data)
    beside = open_sidecar(dataset, "captions", "more")
    stored = built.sidecar.read("validation", 0, 1)
    rows = pq.ParquetFile(dataset.shards("validation")[0]).read_row_group(1).to_pylist()
    added = beside.read("validation", 0, 1)["captions"].to_pylist()
    for row in (0, 1, 3):
        texts = [caption["text"] for caption in (*rows[row]["captions"], *added[row])]
        pixels = decode_image(rows[row]["image"])
        values = {name: stored[name][row].as_py() for name in stored.column_names}
        boxes = np.array(values["boxes"]).reshape(CROPS, 4)
        assert len(np.unique(boxes, axis=0)) == CROPS and len(values["text"]) == len(texts)
        expected = online(teacher, pixels, boxes, texts, size)
        close(vectors(values["image"], values.get("image_scale")), expected.image, numbers)
        close(vectors(b"".join(values["text"]), values.get("text_scale")), expected.text, numbers)
        assert layout.logit_scale == pytest.approx(float(expected.logit_scale))
    assert layout.teacher == teacher.identity and layout.widths == teacher.widths


def vectors(data: bytes, scales: list[float] | None) -> np.ndarray:
    """Decode stored vectors without the code under test: int8 with a scale per vector, else bf16."""
    if scales is None:
        return np.frombuffer(data, ml_dtypes.bfloat16).astype(np.float32)
    return np.frombuffer(data, np.int8).reshape(len(scales), -1) * np.array(scales, np.float32)[:, None]


def close(found: np.ndarray, expected: torch.Tensor, numbers: str) -> None:
    """Compare to the stated precision, and 1e-5 for sums in another order."""
    bound = 2**-8 * expected.abs() if numbers == "bf16" else expected.abs().amax(dim=1, keepdim=True) / 254
    difference = torch.from_numpy(found.reshape(expected.shape)) - expected
    assert found.size and (difference.abs() <= bound + 1e-5).all()


def test_only_large_row_groups_are_cut_and_at_the_teachers_batches(tmp_path: Path) -> None:
    shapes_dataset(tmp_path / "data", shards=1, rows=20)  # row groups of 6, 6, 6 and 2
    job = {"split": "train", "number": 0, "path": "train-00000.parquet", "sha256": "0"}

    def cut(most: int) -> list[list[tuple[int, ...]]]:
        parts = steps.parts_of(tmp_path / "data", most, Task(name="a", payload=job))
        return [[tuple(rows) for rows in part.rows] for part in parts]

    assert cut(12) == [[(0, 0, 6), (1, 0, 6)], [(2, 0, 6), (3, 0, 2)]]
    cuts = [[(group, 0, 4), (group, 4, 6)] for group in range(3)]
    assert cut(4) == [[rows] for rows in cuts[0]] + [[rows] for rows in cuts[1]] + [
        [cuts[2][0]],
        [(2, 4, 6), (3, 0, 2)],
    ]
    # 10 crops of 224 px take 1.5 MB: two batches of 25 images and no third one fit into 128 MiB.
    config = EmbedConfig(teacher="x", augmentations=10, batch_size=256)
    assert steps.part_rows(config, (224, 224)) == 75
    assert steps.part_rows(config.model_copy(update={"batch_size": 65_536}), (224, 224)) == 6_553


@pytest.mark.slow
def test_parts_of_a_row_group_give_the_bytes_of_a_whole_one(
    data: Path, nano_teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = {"numbers": "int8", "batch_size": 5, "crop_scale": 0.5}
    whole = embed(data, "whole", str(nano_teacher), **arguments)
    seen: list[int] = []
    crop = steps.Crop.inputs
    monkeypatch.setattr(steps, "PART_BYTES", 6 * CROPS * 3 * 32**2)

    def counted(self: Any, job: Any, rows: steps.Rows) -> steps.Inputs:
        seen.append(rows.stop - rows.first)
        return crop(self, job, rows)

    monkeypatch.setattr(steps.Crop, "inputs", counted)
    parts = embed(data, "parts", str(nano_teacher), **arguments)
    assert len(seen) > 10 and max(seen) < 30 and sum(seen) == 40
    assert parts.sidecar.manifest.splits == whole.sidecar.manifest.splits and parts.counts == whole.counts


def test_a_damaged_image_or_shard_is_named(tmp_path: Path, nano_teacher: Path) -> None:
    """A dataset that was damaged after its import; a restored file resumes."""
    folder = tmp_path / "data"
    shapes_dataset(folder, shards=2)
    shard = folder / "train-00001.parquet"
    good = shard.read_bytes()
    rows = pq.read_table(shard).to_pylist()
    rows[7]["image"] = rows[7]["image"][:100]
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), tmp_path / "damaged.parquet", row_group_size=6)
    plan = plan_embedding(folder, "nano", EmbedConfig(teacher=str(nano_teacher)))
    for content, words in (
        ((tmp_path / "damaged.parquet").read_bytes(), r"train-00001\.parquet: sample 01007"),
        (good[:-50], r"train-00001\.parquet cannot be read .* data verify"),
    ):
        shard.write_bytes(content)
        with pytest.raises(UserError, match=words):
            embed_dataset(plan, pool=HERE)
    first = plan.folder / "train-00000.parquet"
    written = first.stat().st_mtime_ns
    shard.write_bytes(good)
    assert embed_dataset(plan, pool=HERE).counts == {"images": 20, "captions": 20}
    assert first.stat().st_mtime_ns == written


def test_a_batch_that_does_not_fit_is_named_with_its_rows(
    tmp_path: Path, nano_teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes_dataset(tmp_path / "data", shards=1)
    plan = plan_embedding(tmp_path / "data", "nano", EmbedConfig(teacher=str(nano_teacher)))

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(steps.EmbeddingTeacher, "images", full)
    with pytest.raises(
        UserError, match=r"train-00000\.parquet, rows from 0 of row group 0: --batch-size 256 does not"
    ):
        embed_dataset(plan, pool=HERE)


@pytest.mark.slow
@pytest.mark.parametrize("numbers", ["bf16", "int8"])
def test_the_predicted_bytes_are_those_written(data: Path, nano_teacher: Path, numbers: str) -> None:
    config = EmbedConfig(teacher=str(nano_teacher), augmentations=5, numbers=numbers, captions=("more",))  # type: ignore[arg-type]
    plan = plan_embedding(data, f"bytes-{numbers}", config, ["validation"])
    built = embed_dataset(plan, pool=HERE)
    written = sum(path.stat().st_size for path in built.sidecar.shards("validation"))
    assert sum(plan.bytes.values()) == pytest.approx(written, rel=0.01)
    dataset = open_dataset(data)
    rows, width = dataset.rows("validation"), 2 if numbers == "bf16" else 1
    assert plan.bytes["image embeddings"] == rows * 5 * plan.layout.widths[0] * width
    assert plan.bytes["text embeddings"] == built.counts["captions"] * plan.layout.widths[1] * width
    assert plan.bytes["crop boxes"] == rows * 5 * 16


@pytest.mark.slow
def test_embeddings_that_do_not_fit_are_refused_with_the_sizes(
    data: Path, nano_teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_embedding(data, "large", EmbedConfig(teacher=str(nano_teacher), augmentations=3), ["validation"])
    total = sum(plan.bytes.values())
    plan.check(int(total) + 1)
    with pytest.raises(UserError, match=r"the disk budget is 0\.000 GB: use fewer --augmentations"):
        plan.check(int(total) - 1)
    # One byte less than required.
    usage = type("Usage", (), {"free": int(total) - 1})
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
    with pytest.raises(UserError, match=r"its disk has 0\.00 GB free"):
        plan.check(None)
    assert not plan.folder.exists()


@pytest.mark.slow
def test_the_same_name_with_another_teacher_or_crop_is_refused(data: Path, teachers: Any) -> None:
    first = embed(data, "keyed", teachers["ours"][0])
    assert embed(data, "keyed", teachers["ours"][0]).sidecar.hash == first.sidecar.hash
    with pytest.raises(UserError, match="differ in layout"):
        embed(data, "keyed", teachers["open_clip"][0])
    with pytest.raises(UserError, match="differ in config"):
        embed(data, "keyed", teachers["ours"][0], seed=1)
    other = embed(data, "other", teachers["ours"][0], seed=1)
    assert EmbeddingLayout.of(other.sidecar.manifest).key == EmbeddingLayout.of(first.sidecar.manifest).key
    with pytest.raises(UserError, match="no finished captions 'none'"):
        plan_embedding(data, "x", EmbedConfig(teacher=teachers["ours"][0], captions=("none",)))


@pytest.mark.slow
def test_embeddings_of_replaced_captions_are_refused(data: Path, nano_teacher: Path) -> None:
    built = embed(data, "before", str(nano_teacher))
    dataset, manifest = open_dataset(data), data / "captions/more/manifest.json"
    before = manifest.read_text()
    assert open_sidecar(dataset, "embeddings", "before").hash == built.sidecar.hash
    manifest.write_text(json.dumps(json.loads(before) | {"recipe": {"seed": 2}}))
    try:
        with pytest.raises(UserError, match="contains embeddings of other captions"):
            open_sidecar(dataset, "embeddings", "before")
    finally:
        manifest.write_text(before)


@pytest.mark.slow
def test_the_command_prints_the_bytes_and_refuses_before_it_starts(data: Path, nano_teacher: Path) -> None:
    arguments = ["embed", str(data), "--name", "cli", "--teacher", str(nano_teacher), "--split", "validation"]
    found = CliRunner().invoke(app, [*arguments, "--augmentations", "3", "--disk-budget", "1KB"])
    assert isinstance(found.exception, UserError) and "disk budget" in str(found.exception)
    parts = ("image embeddings", "text embeddings", "crop boxes", "total")
    assert all(re.search(rf"{part} +0\.\d{{6}} GB", found.output) for part in parts)
    found = CliRunner().invoke(app, [*arguments, "--crop-scale", "2"])
    assert isinstance(found.exception, UserError) and "--crop-scale: Input should be less" in str(found.exception)
    assert not (data / "embeddings" / "cli").exists()
