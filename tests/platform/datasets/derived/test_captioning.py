"""A CoCa fitted in the test captions shapes: its captions match the images, in any batch and on Ray."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from captioning_parts import COLOURS, fitted_coca, shape, shapes_dataset
from transformers import TopPLogitsWarper
from typer.testing import CliRunner

from siclip.captioning.captioner import Captioner
from siclip.captioning.coca import CoCaCaptioner
from siclip.captioning.sampling import Sampling, draws, pick
from siclip.errors import UserError
from siclip_platform.cli.data import app
from siclip_platform.datasets.derived.captions import caption
from siclip_platform.datasets.derived.captions.caption import caption_dataset, usable
from siclip_platform.datasets.derived.captions.captioners import open_captioner
from siclip_platform.datasets.derived.captions.config import CaptionConfig, CleanRules, SimilarityFilter
from siclip_platform.datasets.derived.stage import Pool, Task
from siclip_platform.datasets.manifest import open_dataset
from siclip_platform.datasets.schema import SCHEMA
from siclip_platform.datasets.sidecar import open_sidecar

HERE = Pool(here=True)


@pytest.fixture(scope="module")
def coca(tmp_path_factory: pytest.TempPathFactory) -> CaptionConfig:
    return fitted_coca(tmp_path_factory.mktemp("coca"))


@pytest.fixture(scope="module")
def captioner(coca: CaptionConfig) -> Captioner:
    return open_captioner(coca)


def colour(text: str) -> str:
    return next((name for name in COLOURS if f" {name} " in text), "none")


@pytest.mark.slow
def test_captions_describe_their_images(coca: CaptionConfig, tmp_path: Path) -> None:
    truth = shapes_dataset(tmp_path / "data")
    built = caption_dataset(tmp_path / "data", "nano", coca, pool=HERE)
    rows = [row for index in range(3) for row in read(built, index)]
    pairs = [
        (colour(text), colour(caption["text"])) for text, row in zip(truth, rows, strict=True) for caption in row
    ]
    assert len(pairs) >= 30 and sum(a == b for a, b in pairs) / len(pairs) > 0.8  # by chance 0.25
    models = {(caption["source"], caption["model"]) for row in rows for caption in row}
    captioner = open_captioner(coca)
    assert models == {("synthetic", f"coca_nano@{captioner.hash}")}
    counts = built.counts
    assert counts["images"] == 30 and counts["generated"] == 60
    assert counts["kept"] == len(pairs) == 60 - sum(counts[k] for k in ("unusable", "near_equal", "dissimilar"))


def read(built: object, shard: int) -> list[list[dict[str, str]]]:
    sidecar = built.sidecar  # type: ignore[attr-defined]
    groups = [sidecar.read("train", shard, index) for index in range(2)]
    assert [group.num_rows for group in groups] == [6, 4]
    return [row for group in groups for row in group["captions"].to_pylist()]


@pytest.mark.slow
def test_a_caption_does_not_depend_on_its_batch(captioner: Captioner) -> None:
    rng = np.random.default_rng(4)
    images, ids = [shape(rng)[0] for _ in range(5)], list("abcde")
    together = captioner.captions(images, ids, 3)
    order = [3, 0, 4]
    assert captioner.captions([images[i] for i in order], [ids[i] for i in order], 3) == [together[i] for i in order]
    assert all(len(texts) == 3 for texts in together)


@pytest.mark.slow
def test_a_damaged_image_or_shard_is_named_and_what_was_finished_is_kept(coca: CaptionConfig, tmp_path: Path) -> None:
    """A dataset that was damaged after its import: the message names the sample, and a restored file resumes."""
    data = tmp_path / "data"
    shapes_dataset(data, shards=2)
    shard = data / "train-00001.parquet"
    whole = shard.read_bytes()
    rows = pq.read_table(shard).to_pylist()
    rows[7]["image"] = rows[7]["image"][:100]
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), tmp_path / "damaged.parquet", row_group_size=6)
    damaged = (tmp_path / "damaged.parquet").read_bytes()
    for content, words in (
        (damaged, r"train-00001\.parquet: sample 01007"),
        (whole[:-50], r"train-00001\.parquet cannot be read .* data verify"),
    ):
        shard.write_bytes(whole)
        with pytest.raises(UserError, match=words):
            # Damaged once the first shard is done: the dataset was whole when it was opened.
            caption_dataset(data, "nano", coca, pool=HERE, progress=lambda *_, now=content: shard.write_bytes(now))
    first = data / "captions/nano/train-00000.parquet"
    written = first.stat().st_mtime_ns
    shard.write_bytes(whole)
    assert caption_dataset(data, "nano", coca, pool=HERE).counts["images"] == 20
    assert first.stat().st_mtime_ns == written


def test_parts_of_a_shard_are_its_row_groups_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes_dataset(tmp_path / "data", shards=1, rows=20)
    job = {"split": "train", "number": 0, "path": "train-00000.parquet", "sha256": "0"}
    monkeypatch.setattr(caption, "PART_ROWS", 12)
    parts = caption.row_groups_of(tmp_path / "data", Task(name="a", payload=job))
    assert [part.groups for part in parts] == [[0, 1], [2, 3]]  # of 6, 6, 6 and 2 rows
    decoded = [caption.Decode(str(tmp_path / "data"), lambda image: image, judged=8)(part) for part in parts]
    assert [part.rows for part in decoded] == [[6, 6], [6, 2]]
    assert [name for part in decoded for name in part.ids] == [f"00{number:03d}" for number in range(20)]
    assert {image.shape for part in decoded for image in part.judged} == {(8, 8, 3)}


@pytest.mark.slow
def test_a_gpu_of_half_the_memory_takes_half_the_batch(
    captioner: Captioner, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert isinstance(captioner, CoCaCaptioner)
    rng = np.random.default_rng(4)
    images = [shape(rng)[0] for _ in range(5)]
    expected = captioner.captions(images, list("abcde"), 2)
    encode = captioner.encode

    def limited(pixels: np.ndarray) -> torch.Tensor:
        if len(pixels) > 2:
            raise torch.OutOfMemoryError
        return encode(pixels)

    monkeypatch.setattr(captioner, "encode", limited)
    monkeypatch.setattr(captioner, "batch_size", 8)
    assert captioner.captions(images, list("abcde"), 2) == expected
    assert captioner.batch_size == 2 and "2 images at a time" in caplog.text
    monkeypatch.setattr(captioner, "encode", lambda pixels: limited(np.repeat(pixels, 3, axis=0)))
    with pytest.raises(UserError, match="captioning of one image does not fit into the memory"):
        captioner.captions(images, list("abcde"), 2)


def test_the_precision_is_that_of_the_device() -> None:
    auto = CaptionConfig()
    assert auto.on(gpu=True).precision == "bf16" and auto.on(gpu=False).precision == "fp32"
    assert CaptionConfig(precision="tf32").on(gpu=True).precision == "tf32"
    with pytest.raises(UserError, match="--precision tf32 is a format of GPUs"):
        CaptionConfig(precision="tf32").on(gpu=False)


def test_draws_differ_by_image_number_and_seed() -> None:
    one, other = draws(Sampling(seed=1), ["a", "b"], 2), draws(Sampling(seed=2), ["a", "b"], 2)
    assert len({row.tobytes() for row in (*one, *other)}) == 8
    assert (draws(Sampling(seed=1), ["b"], 1) == one[2]).all()


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 1.0])
def test_tokens_are_drawn_from_the_nucleus_of_transformers(top_p: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(1, 400, generator=generator)
    expected = TopPLogitsWarper(top_p)(torch.zeros(1, 1, dtype=torch.long), logits.clone()).softmax(dim=-1)[0]
    # Evenly spaced draws hit each part of the distribution in proportion to its probability.
    uniforms = (torch.arange(20_000) + 0.5) / 20_000
    found = pick(logits.expand(20_000, -1), uniforms, Sampling(top_p=top_p))
    shares = torch.bincount(found, minlength=400) / 20_000
    assert (shares[expected == 0] == 0).all()
    assert torch.allclose(shares, expected, atol=2e-4)


def test_a_nucleus_can_be_larger_than_the_tokens_tried_first() -> None:
    found = pick(torch.zeros(1000, 1000), (torch.arange(1000) + 0.5) / 1000, Sampling(top_p=1))
    assert sorted(found.tolist()) == list(range(1000))


def test_captions_near_equal_to_each_other_or_to_the_datasets_are_counted() -> None:
    counts: Counter[str] = Counter()
    generated = ["a red square . more", "a red square", "a blue disc", "short", "a photo of it"]
    assert usable(generated, ["A photo of it"], CleanRules(), counts) == ["a red square", "a blue disc"]
    assert counts == {"generated": 5, "unusable": 1, "near_equal": 2}


@pytest.mark.slow
def test_the_filter_keeps_captions_above_the_minimum_similarity(
    coca: CaptionConfig, nano_teacher: Path, tmp_path: Path
) -> None:
    shapes_dataset(tmp_path / "data", shards=1)
    free = caption_dataset(tmp_path / "data", "free", coca, pool=HERE)
    for name, minimum in (("all", -1.0), ("none", 1.0)):
        similarity = SimilarityFilter(teacher=str(nano_teacher), min_similarity=minimum)
        built = caption_dataset(
            tmp_path / "data", name, coca.model_copy(update={"similarity": similarity}), pool=HERE
        )
        assert built.counts["kept"] == (free.counts["kept"] if name == "all" else 0)
        assert built.counts["dissimilar"] == free.counts["kept"] - built.counts["kept"]


@pytest.mark.slow
def test_invalid_models_are_refused_before_anything_is_written(coca: CaptionConfig, tmp_path: Path) -> None:
    shapes_dataset(tmp_path / "data", shards=1)
    wrong = {
        "open_clip has no model 'coca_none'": {"model": "coca_none"},
        "neither a file nor a tag": {"model": "coca_ViT-B-32", "pretrained": "nothing"},
        "has 10 positions": {"sampling": Sampling(max_tokens=10)},
        "does not exist": {"model": str(tmp_path / "none.json")},
    }
    for message, change in wrong.items():
        with pytest.raises(UserError, match=message):
            caption_dataset(tmp_path / "data", "bad", coca.model_copy(update=change), pool=HERE)
    assert open_dataset(tmp_path / "data").split_names == ["train"] and not (tmp_path / "data/captions").exists()


@pytest.mark.slow
def test_the_same_name_with_other_settings_is_refused(coca: CaptionConfig, tmp_path: Path) -> None:
    shapes_dataset(tmp_path / "data", shards=1)
    built = caption_dataset(tmp_path / "data", "nano", coca, pool=HERE)
    again = caption_dataset(tmp_path / "data", "nano", coca, pool=HERE)
    assert (again.sidecar.hash, again.counts) == (built.sidecar.hash, built.counts)
    with pytest.raises(UserError, match="differ in config"):
        caption_dataset(tmp_path / "data", "nano", coca.model_copy(update={"per_image": 1}), pool=HERE)


@pytest.mark.slow
def test_the_command_on_ray_gives_the_same_captions(coca: CaptionConfig, tmp_path: Path) -> None:
    shapes_dataset(tmp_path / "data", shards=2)
    here = caption_dataset(tmp_path / "data", "here", coca, pool=HERE)
    options = ["--name", "ray", "--model", coca.model, "--pretrained", coca.pretrained, "--per-image", "2"]
    options += ["--max-tokens", "8", "--batch-size", "8", "--near-equal", "1"]
    found = CliRunner().invoke(app, ["caption", str(tmp_path / "data"), *options])
    assert found.exit_code == 0, found.output
    assert f"{here.counts['kept']} captions of 20 images (40 generated" in found.output
    # Eight different pictures, so most captions are those of several images.
    assert "of the captions are those of other images too: look at them" in " ".join(found.output.split())
    built = open_sidecar(open_dataset(tmp_path / "data"), "captions", "ray")
    assert built.manifest.recipe == here.sidecar.manifest.recipe
    assert built.manifest.splits == here.sidecar.manifest.splits


def test_invalid_options_are_named() -> None:
    for options, message in (
        (["--top-p", "0"], "--top-p: Input should be greater than 0"),
        (["--min-similarity", "0.2"], "--min-similarity and --teacher go together"),
        (["--min-tokens", "40"], "min_tokens 40 is above max_tokens 30"),
    ):
        found = CliRunner().invoke(app, ["caption", "nowhere", "--name", "x", *options])
        assert isinstance(found.exception, UserError) and message in str(found.exception)
