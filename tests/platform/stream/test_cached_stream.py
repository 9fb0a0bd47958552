"""The stream from a trunk cache, compared with the stream of images and with the trunk itself."""

from __future__ import annotations

import pickle
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from siclip.checkpoints.formats import load_model
from siclip.data.batch import to_float_images
from siclip.errors import UserError
from siclip.models import create_model
from siclip.models.clip import Clip
from siclip_platform.recipes.digits import digits_student
from siclip_platform.stream import Stream, thread_batches
from siclip_platform.stream.trunk_features import CachedStream, TrunkCache, build_trunk_cache

ROWS = 40  # of the validation split, in one shard
IMAGE_BYTES = 128 * 4 * 4 * 2


@pytest.fixture(scope="module")
def teacher(nano_teacher: Path, digits: Path) -> Clip:
    """The teacher with BatchNorm statistics of the data: with the initial ones all images have similar features."""
    model = load_model(nano_teacher).train()
    batch = next(thread_batches(stream(digits), 60, 0, 60))
    with torch.no_grad():
        for _ in range(20):
            model.trunk(to_float_images(batch.images), batch.tokens)
    return model.eval()


@pytest.fixture(scope="module")
def train_cache(teacher: Clip, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> TrunkCache:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("siclip_platform.stream.trunk_features.build.SHARD_BYTES", 100 * IMAGE_BYTES)
        return build_trunk_cache(teacher, digits, "train", tmp_path_factory.mktemp("cache"))


def stream(digits: Path, split: str = "train") -> Stream:
    recipe = digits_student(digits).updated({"data.window_row_groups": 3})
    return Stream.of(recipe, create_model("siclip-nano").config, split)


def with_shards(whole: Stream, shards: tuple[Path, ...]) -> Stream:
    return replace(whole, sources=(replace(whole.sources[0], shards=shards),))


def assert_rounded(stored: torch.Tensor, computed: torch.Tensor) -> None:
    assert stored.dtype == torch.bfloat16
    torch.testing.assert_close(stored.float(), computed, rtol=2**-8, atol=1e-5)


def test_the_stream_has_the_same_samples_order_and_captions(digits: Path, train_cache: TrunkCache) -> None:
    plain = stream(digits)
    cached = pickle.loads(pickle.dumps(CachedStream(plain, train_cache)))
    for start in (0, 150):
        pairs = list(zip(cached.batches(50, start, 600), thread_batches(plain, 50, start, 600), strict=True))
        assert len(pairs) == (600 - start) // 50
        for ours, theirs in pairs:
            assert ours.images is None
            for name in ("tokens", "image_ids", "caption_ids"):
                assert torch.equal(getattr(ours, name), getattr(theirs, name))


def test_the_features_are_the_trunks_rounded_once(digits: Path, train_cache: TrunkCache, teacher: Clip) -> None:
    teacher.eval()
    plain = stream(digits)
    assert len(train_cache.manifest.images) == 3 and len(train_cache.manifest.texts) > 1
    for ours, theirs in zip(
        CachedStream(plain, train_cache).batches(100, 0, 240), thread_batches(plain, 100, 0, 240), strict=True
    ):
        with torch.no_grad():
            expected = teacher.trunk(to_float_images(theirs.images), theirs.tokens)
        assert ours.features is not None
        for stored, computed in ((ours.features.image, expected.image), (ours.features.text, expected.text)):
            assert_rounded(stored, computed)
            for one, other in zip(stored, computed.roll(1, dims=0), strict=True):
                with pytest.raises(AssertionError):
                    assert_rounded(one, other)


def test_a_cache_is_computed_in_eval_mode_and_restores_the_models_mode(
    digits: Path, train_cache: TrunkCache, teacher: Clip, tmp_path: Path
) -> None:
    teacher.train()
    teacher.image_encoder.model.stem.eval()
    modes = [module.training for module in teacher.modules()]
    again = build_trunk_cache(teacher, digits, "train", tmp_path)
    assert [module.training for module in teacher.modules()] == modes
    assert again.key == train_cache.key
    batches = [next(CachedStream(stream(digits), cache).batches(60, 0, 60)) for cache in (again, train_cache)]
    assert torch.equal(batches[0].features.image, batches[1].features.image)
    assert torch.equal(batches[0].features.text, batches[1].features.text)


def test_crops_are_fixed_and_different_and_the_epoch_chooses_one(digits: Path, teacher: Clip, tmp_path: Path) -> None:
    torch.manual_seed(0)
    expected_noise = torch.rand(1)
    torch.manual_seed(0)
    cache = build_trunk_cache(teacher, digits, "validation", tmp_path / "a", augmentations=3, batch=8)
    assert torch.equal(torch.rand(1), expected_noise)  # the global generator was not used
    assert (
        build_trunk_cache(teacher, digits, "validation", tmp_path / "b", augmentations=3, batch=8).manifest
        == cache.manifest
    )
    stored = load_file(cache.folder / "images-00000.safetensors")
    variants, ids = stored["features"].view(ROWS, 3, 128, 4, 4), stored["ids"].view(ROWS, 3)
    assert (ids == ids[:, :1]).all() and not torch.equal(variants[:, 0], variants[:, 1])

    cached = CachedStream(stream(digits, "validation"), cache)
    rows = {sample_id: row for row, sample_id in enumerate(ids[:, 0].tolist())}
    chosen = []
    for batch in cached.batches(ROWS, 0, 5 * ROWS):
        own = variants[[rows[sample_id] for sample_id in batch.image_ids.tolist()]]
        matches = (own == batch.features.image.unsqueeze(1)).flatten(2).all(dim=2)
        assert matches.any(dim=1).all()
        order = batch.image_ids.argsort()
        chosen.append(matches.int().argmax(dim=1)[order])
    assert all(not torch.equal(a, b) for a, b in pairwise(chosen))
    assert torch.cat(chosen).bincount().min() > 40  # a third of 200 each, up to chance
    again = list(cached.batches(ROWS, 2 * ROWS, 3 * ROWS))
    assert torch.equal(again[0].features.image, list(cached.batches(ROWS, 0, 3 * ROWS))[2].features.image)


def test_a_cache_of_other_data_is_refused(digits: Path, train_cache: TrunkCache, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"another number of samples \(240\) than the stream \(40\)"):
        CachedStream(stream(digits, "validation"), train_cache)
    larger = create_model("mobileclip-nano", image={"image_size": 96}).config
    with pytest.raises(UserError, match="another image size"):
        CachedStream(Stream.of(digits_student(digits), larger), train_cache)

    swapped = with_shards(stream(digits), stream(digits).sources[0].shards[::-1])
    with pytest.raises(UserError, match="has other samples than the stream reads"):
        next(CachedStream(swapped, train_cache).batches(50, 0, 240))
    recaptioned = []
    for shard in stream(digits).sources[0].shards:
        table = pq.read_table(shard)
        captions = [
            [caption | {"text": caption["text"] + "!"} for caption in row] for row in table["captions"].to_pylist()
        ]
        column = pa.array(captions, table.schema.field("captions").type)
        table = table.set_column(table.schema.get_field_index("captions"), "captions", column)
        recaptioned.append(tmp_path / shard.name)
        pq.write_table(table, recaptioned[-1], row_group_size=30)
    with pytest.raises(UserError, match="has other captions than the stream reads"):
        next(CachedStream(with_shards(stream(digits), tuple(recaptioned)), train_cache).batches(50, 0, 240))
