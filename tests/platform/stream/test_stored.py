"""Caption sets and embedding sets beside the data are read with the right sample."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from siclip.checkpoints.formats import load_model
from siclip.data.batch import to_float_images
from siclip.data.captions import stable_id
from siclip.data.crops import replay_crop, seeded_boxes
from siclip.data.images import decode_image
from siclip.data.quantize import quantize
from siclip.errors import UserError
from siclip.models import model_config
from siclip.tokenizer import tokenize
from siclip_platform.datasets.derived.embeddings.layout import EmbeddingLayout, UsedCaptions
from siclip_platform.datasets.manifest import Dataset, open_dataset
from siclip_platform.datasets.schema import CAPTION
from siclip_platform.datasets.sidecar import (
    CAPTIONS_SCHEMA,
    Sidecar,
    SidecarManifest,
    open_sidecar,
    sidecar_folder,
    write_sidecar_manifest,
    write_sidecar_shard,
)
from siclip_platform.recipes.digits import digits_student
from siclip_platform.recipes.recipe import Recipe
from siclip_platform.stream import Stream, thread_batches
from siclip_platform.stream.trunk_features import CachedStream, build_trunk_cache
from siclip_platform.training.build import prepare
from siclip_platform.training.identity import identity as identity_of

MODEL = model_config("siclip-nano")
CROPS, WIDTH = 3, 8


def write_sidecar(dataset: Dataset, kind: str, name: str, schema: pa.Schema, recipe: dict, make: object) -> None:
    """Write a sidecar; ``make`` computes its row from a row of the dataset."""
    folder = sidecar_folder(dataset.folder, kind, name)
    folder.mkdir(parents=True)
    entries = []
    for shard in dataset.shards("train"):
        file = pq.ParquetFile(shard)
        groups = [
            pa.Table.from_pylist([make(row) for row in file.read_row_group(g).to_pylist()], schema)
            for g in range(file.num_row_groups)
        ]
        entries.append(write_sidecar_shard(folder / shard.name, groups, schema))
    manifest = SidecarManifest(
        kind=kind, name=name, version="1", dataset=dataset.hash, recipe=recipe, splits={"train": entries}
    )
    write_sidecar_manifest(folder, manifest)


def embedding(*key: object) -> torch.Tensor:
    """A unit vector that depends on the key."""
    generator = torch.Generator().manual_seed(stable_id("/".join(map(str, key))) % 2**31)
    return torch.nn.functional.normalize(torch.randn(WIDTH, generator=generator), dim=0)


def more_captions(row: dict) -> dict:
    return {"captions": [{"text": f"written for {row['id']}", "source": "synthetic", "model": "writer"}]}


def embeddings(row: dict) -> dict:
    texts = [c["text"] for c in row["captions"]] + [f"written for {row['id']}"]
    images, scales = quantize(torch.stack([embedding(row["id"], k) for k in range(CROPS)]), "int8")
    vectors, text_scales = quantize(torch.stack([embedding(text) for text in texts]), "int8")
    return {
        "image": images.tobytes(),
        "image_scale": scales.tolist(),
        "boxes": seeded_boxes(row["height"], row["width"], CROPS, 0.4, 0, row["id"]).ravel().tolist(),
        "text": [vector.tobytes() for vector in vectors],
        "text_scale": text_scales.tolist(),
    }


EMBEDDINGS = pa.schema(
    [
        pa.field("image", pa.binary(CROPS * WIDTH)),
        pa.field("image_scale", pa.list_(pa.float32())),
        pa.field("boxes", pa.list_(pa.int32(), 4 * CROPS)),
        pa.field("text", pa.list_(pa.binary(WIDTH))),
        pa.field("text_scale", pa.list_(pa.float32())),
    ]
)


def layout(captions: Sidecar) -> dict:
    """The layout in the manifest of embeddings that were computed with these captions."""
    used = UsedCaptions(name=captions.manifest.name, hash=captions.hash)
    teacher = {"teacher": "t", "key": "k", "widths": (WIDTH, WIDTH), "logit_scale": 50.0, "image_size": (64, 64)}
    stored = EmbeddingLayout(**teacher, numbers="int8", augmentations=CROPS, captions=(used,))
    return stored.model_dump(mode="json")


@pytest.fixture(scope="module")
def folder(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digit scenes with a caption set and an embedding set beside them."""
    copy = tmp_path_factory.mktemp("beside")
    for file in digits.iterdir():
        if file.is_file():
            (copy / file.name).write_bytes(file.read_bytes())
    dataset = open_dataset(copy)
    write_sidecar(dataset, "captions", "written", CAPTIONS_SCHEMA, {}, more_captions)
    write_sidecar(
        dataset,
        "embeddings",
        "teacher",
        EMBEDDINGS,
        {"layout": layout(open_sidecar(dataset, "captions", "written"))},
        embeddings,
    )
    return copy


def recipe(folder: Path, **changes: object) -> Recipe:
    return digits_student(folder).updated(
        {"data.captions": ["written"], "data.window_row_groups": 3, "training.batch_size": 40, **changes}
    )


def rows(folder: Path) -> dict[int, dict]:
    found = [row for shard in sorted(folder.glob("train-*")) for row in pq.read_table(shard).to_pylist()]
    return {stable_id(row["id"]): row for row in found}


def test_captions_of_a_set_follow_the_datasets_own_captions(folder: Path) -> None:
    only_written = {"data.synthetic_share": 1.0, "data.caption_weights": {"synthetic": 0.0, "writer": 1.0}}
    known = rows(folder)
    own = {c["model"] for row in known.values() for c in row["captions"] if c["source"] == "synthetic"}
    only_written["data.caption_weights"] |= dict.fromkeys(own - {None}, 0.0)
    stream = Stream.of(recipe(folder, **only_written), MODEL)
    for batch in thread_batches(stream, 40, 0, 240):
        texts = [f"written for {known[sample_id]['id']}" for sample_id in batch.image_ids.tolist()]
        assert torch.equal(batch.tokens, tokenize(texts, 20))
    assert CAPTION.names == ["text", "source", "model"]


def test_embeddings_are_of_the_crop_and_the_caption_in_the_batch(folder: Path) -> None:
    stream = Stream.of(recipe(folder, **{"data.teacher_embeddings": "teacher", "data.synthetic_share": 0.7}), MODEL)
    known = rows(folder)
    crops, written_ones = set(), 0
    for epoch, batches in enumerate((thread_batches(stream, 40, 0, 240), thread_batches(stream, 40, 240, 480))):
        for batch in batches:
            assert batch.teacher_image is not None and batch.teacher_text is not None
            for index, sample_id in enumerate(batch.image_ids.tolist()):
                row = known[sample_id]
                errors = torch.stack([embedding(row["id"], k) - batch.teacher_image[index] for k in range(CROPS)])
                crop = int(errors.abs().amax(dim=1).argmin())
                assert errors[crop].abs().max() < 0.005
                crops.add((epoch, crop))
                box = seeded_boxes(row["height"], row["width"], CROPS, 0.4, 0, row["id"])[crop]
                pixels = replay_crop(decode_image(row["image"]), box, 64)
                assert np.array_equal(batch.images[index].numpy(), pixels)
                texts = [c["text"] for c in row["captions"]] + [f"written for {row['id']}"]
                text = next(t for t in texts if stable_id(t) == int(batch.caption_ids[index]))
                written_ones += text.startswith("written for")
                assert (embedding(text) - batch.teacher_text[index]).abs().max() < 0.005
    assert len(crops) == 2 * CROPS and written_ones > 20


def test_a_trunk_cache_has_the_crops_of_the_embeddings_and_the_caption_sets(
    folder: Path, nano_teacher: Path, tmp_path: Path
) -> None:
    """Each batch equals that of the stream of images, with the trunk's output in place of the pixels."""
    model = load_model(nano_teacher).eval()
    named = {"data.teacher_embeddings": "teacher", "data.synthetic_share": 0.7, "data.scaled_decode": False}
    plain = Stream.of(recipe(folder, **named), MODEL)
    cache = build_trunk_cache(model, folder, "train", tmp_path, captions=("written",), crops="teacher")
    assert cache.key.augmentations == CROPS
    for ours, theirs in zip(
        CachedStream(plain, cache).batches(40, 0, 480), thread_batches(plain, 40, 0, 480), strict=True
    ):
        for name in ("tokens", "image_ids", "caption_ids", "teacher_image", "teacher_text"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name))
        with torch.no_grad():
            computed = model.trunk(to_float_images(theirs.images), theirs.tokens)
        for stored, expected in ((ours.features.image, computed.image), (ours.features.text, computed.text)):
            torch.testing.assert_close(stored.float(), expected, rtol=2**-8, atol=1e-5)


def test_a_cache_of_other_crops_is_refused(folder: Path, nano_teacher: Path, tmp_path: Path) -> None:
    own_crops = build_trunk_cache(load_model(nano_teacher), folder, "train", tmp_path, augmentations=CROPS)
    stream = Stream.of(recipe(folder, **{"data.teacher_embeddings": "teacher"}), MODEL)
    with pytest.raises(UserError, match="another set of crops"):
        CachedStream(stream, own_crops)


def test_a_run_from_a_trunk_cache_uses_stored_embeddings_as_its_teacher(
    folder: Path, nano_teacher: Path, tmp_path: Path
) -> None:
    """Without a teacher model the first loss is that of images and stored embeddings, up to bf16 rounding."""
    base = recipe(folder, **{"data.teacher_embeddings": "teacher", "data.scaled_decode": False})
    base = base.updated({"teacher": str(nano_teacher), "training.evaluate_every": 0})
    first = [
        prepared.trainer.train_step(next(iter(prepared.batches(0, 40))))["loss"].item()
        for prepared in (prepare(base), prepare(base.updated({"data.trunk_cache": str(tmp_path)})))
    ]
    assert first[0] == pytest.approx(first[1], rel=0.02)
    with pytest.raises(UserError, match="bring their own crops"):
        base.updated({"data.trunk_cache": str(tmp_path), "data.augmentations": 2})


def test_the_cursor_has_the_hashes_of_sidecars(folder: Path) -> None:
    hashes = [
        Stream.of(recipe(folder, **changes), MODEL).cursor(0).datasets
        for changes in ({"data.captions": []}, {}, {"data.teacher_embeddings": "teacher"})
    ]
    assert [len(each) for each in hashes] == [1, 2, 3]


def test_embeddings_computed_with_other_captions_are_refused(folder: Path) -> None:
    dataset = open_dataset(folder)
    if not sidecar_folder(folder, "captions", "others").exists():
        write_sidecar(dataset, "captions", "others", CAPTIONS_SCHEMA, {}, more_captions)
    changes = {"data.captions": ["others"], "data.teacher_embeddings": "teacher"}
    with pytest.raises(UserError, match=r"computed with the caption sets \['written'\], and data.captions names"):
        Stream.of(recipe(folder, **changes), MODEL)


def test_sidecars_are_part_of_a_trainings_identity_and_paths_are_not(folder: Path, tmp_path: Path) -> None:
    named = {"data.teacher_embeddings": "teacher"}
    known = identity_of(recipe(folder, **named))
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    assert identity_of(recipe(moved, **named, **{"data.reader": "ray", "data.concurrent_reads": 3})) == known
    again = moved / "captions" / "written" / "manifest.json"
    again.write_text(again.read_text().replace('"version": "1"', '"version": "2"'))
    other = tmp_path / "other"
    shutil.copytree(moved, other)
    assert identity_of(recipe(other)) != identity_of(recipe(folder))
    mixed = recipe(folder, **{"data.mix": [{"path": str(folder)}]})
    assert identity_of(mixed) not in {known, identity_of(recipe(folder))}
