"""Batches of threads and of Ray Data tasks, compared with the dataset's files and with each other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from siclip.data.batch import Batch
from siclip.data.captions import stable_id
from siclip.models import model_config
from siclip.tokenizer import tokenize
from siclip_platform.recipes.digits import digits_student
from siclip_platform.recipes.recipe import Recipe
from siclip_platform.stream import Stream, load_evaluation_set, parts, thread_batches
from siclip_platform.stream.ray_reader import ray_batches

MODEL = model_config("siclip-nano")


def recipe(digits: Path, **changes: object) -> Recipe:
    return digits_student(digits).updated({"data.window_row_groups": 3, "training.batch_size": 50, **changes})


def rows_by_id(digits: Path) -> dict[int, dict]:
    rows = [row for shard in sorted(digits.glob("train-*")) for row in pq.read_table(shard).to_pylist()]
    return {stable_id(row["id"]): row for row in rows}


def same(a: Batch, b: Batch) -> bool:
    names = ("images", "tokens", "image_ids", "caption_ids")
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in names)


def test_a_batch_has_the_pixels_and_a_caption_of_each_sample(digits: Path) -> None:
    rows = rows_by_id(digits)
    batch = next(thread_batches(Stream.of(recipe(digits), MODEL), 50, 0, 50))
    assert batch.images.shape == (50, 64, 64, 3) and batch.tokens.shape == (50, 20)
    for image, tokens, sample_id in zip(batch.images, batch.tokens, batch.image_ids.tolist(), strict=True):
        row = rows[sample_id]
        with (digits / "one.jpg").open("wb") as file:
            file.write(row["image"])
        pixels = np.asarray(Image.open(digits / "one.jpg").convert("RGB"), dtype=int)
        assert np.abs(pixels - image.numpy().astype(int)).max() <= 8  # two JPEG decoders differ by a few levels
        captions = tokenize([caption["text"] for caption in row["captions"]], 20)
        assert (captions == tokens).all(dim=1).any()
    (digits / "one.jpg").unlink()


def test_an_epoch_has_every_sample_once(digits: Path) -> None:
    batches = list(thread_batches(Stream.of(recipe(digits), MODEL), 50, 0, 240))
    assert [len(batch) for batch in batches] == [50, 50, 50, 50, 40]
    ids = [i for batch in batches for i in batch.image_ids.tolist()]
    assert sorted(ids) == sorted(rows_by_id(digits))


def test_a_stream_can_start_at_any_batch(digits: Path) -> None:
    stream = Stream.of(recipe(digits), MODEL)
    whole = list(thread_batches(stream, 50, 0, 600))
    assert all(same(a, b) for a, b in zip(thread_batches(stream, 50, 250, 600), whole[5:], strict=True))


def test_the_share_of_synthetic_captions_is_the_requested_one(digits: Path) -> None:
    texts = {
        sample_id: [stable_id(c["text"]) for c in row["captions"] if c["source"] == "original"]
        for sample_id, row in rows_by_id(digits).items()
    }
    for share in (0.0, 1.0):
        batch = next(thread_batches(Stream.of(recipe(digits, **{"data.synthetic_share": share}), MODEL), 240, 0, 240))
        pairs = zip(batch.image_ids.tolist(), batch.caption_ids.tolist(), strict=True)
        assert [caption in texts[image] for image, caption in pairs] == [share == 0.0] * 240


def test_the_evaluation_set_has_the_original_captions_and_five_negatives(digits: Path) -> None:
    rows = [row for shard in sorted(digits.glob("test-*")) for row in pq.read_table(shard).to_pylist()][:10]
    data = load_evaluation_set(digits, "test", MODEL, limit=10)
    assert data.negatives is not None and data.negatives.shape == (10, 5, 20)
    originals = [next(c["text"] for c in row["captions"] if c["source"] == "original") for row in rows]
    assert torch.equal(data.tokens, tokenize(originals, 20))
    assert not (data.negatives == data.tokens.unsqueeze(1)).all(dim=2).any()


@pytest.mark.slow
@pytest.mark.parametrize("decode", ["trainer", "reader"])
def test_ray_data_gives_the_same_batches_from_any_position(
    decode: str, digits: Path, own_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of tasks differs from the number of threads, and a window is sent in several blocks."""
    monkeypatch.setattr(parts, "BLOCK_BYTES", 40_000)
    stream = Stream.of(recipe(digits, **{"data.concurrent_reads": 1, "data.augment.crop_scale": 0.7}), MODEL)
    tasks = replace(stream, concurrent_reads=2)
    local = list(thread_batches(stream, 50, 0, 600))
    streamed = list(ray_batches(tasks, 50, 0, 600, decode=decode))
    assert len(streamed) == len(local) == 12
    assert all(same(a, b) for a, b in zip(streamed, local, strict=True))
    share = list(ray_batches(tasks, 50, 250, 600, rank=1, workers=2, decode=decode))
    assert len(share) == 7
    assert all(same(a, b[slice(25, 50)]) for a, b in zip(share, local[5:], strict=True))


@pytest.mark.gpu
def test_batches_for_a_gpu_are_in_pinned_memory(digits: Path) -> None:
    batch = next(thread_batches(Stream.of(recipe(digits), MODEL), 50, 0, 50))
    assert batch.images is not None and batch.images.is_pinned() and batch.tokens.is_pinned()
