"""Any range of the stream, in any shares, is a slice of the whole; each sample is read once per epoch."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from siclip.data.batch import Batch
from siclip.data.captions import stable_id
from siclip.data.cursor import check_cursor
from siclip.errors import UserError
from siclip.models import model_config
from siclip_platform.datasets.manifest import Manifest, ShardEntry, write_manifest, write_shard
from siclip_platform.datasets.schema import SCHEMA
from siclip_platform.recipes.digits import digits_student
from siclip_platform.recipes.recipe import Recipe
from siclip_platform.stream import Stream, thread_batches
from siclip_platform.stream.columns import shares
from siclip_platform.stream.parts import Part, PartReader, parts_of
from siclip_platform.stream.ray_reader import Block, received_batches
from siclip_platform.stream.windows import Group

MODEL = model_config("siclip-nano", image={"image_size": 32})
SHARDS = {"even": ([12, 12, 12], 4), "uneven": ([7, 1, 22], 5), "one": ([9], 20)}
"""Rows of each shard, rows per row group."""


def row(sample_id: str, number: int) -> dict[str, object]:
    pixels = np.random.default_rng(number).integers(0, 255, (9, 11, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    captions = [{"text": f"photo {number % 11}", "source": "original", "model": None}]
    captions += [{"text": f"a drawing of {number} by {m}", "source": "synthetic", "model": m} for m in "ab"]
    sizes = {"width": 11, "height": 9, "category": None, "meta": None}
    return {"id": sample_id, "image": file.getvalue(), "captions": captions, **sizes}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("datasets")
    for name, (rows, group_rows) in SHARDS.items():
        (root / name).mkdir()
        entries: list[ShardEntry] = []
        number = 0
        for shard, count in enumerate(rows):
            samples = [row(f"{name}-{number + i}", number + i) for i in range(count)]
            number += count
            table = pa.Table.from_pylist(samples, SCHEMA)
            entries.append(write_shard(table, root / name / f"train-{shard}.parquet", group_rows))
        write_manifest(root / name, Manifest(name=name, version="1", recipe={}, splits={"train": entries}))
    return {name: root / name for name in SHARDS}


def rows_of(name: str) -> int:
    return sum(SHARDS[name][0])


def recipe(folders: dict[str, Path], name: str, **changes: object) -> Recipe:
    return digits_student(folders[name]).updated({"training.batch_size": 6, **changes})


@st.composite
def stream_settings(draw: st.DrawFn) -> tuple[str, dict[str, object], list[str]]:
    """A dataset, changes to its recipe, and the datasets mixed into it."""
    name = draw(st.sampled_from(list(SHARDS)))
    changes: dict[str, object] = {
        "data.window_row_groups": draw(st.integers(1, 5)),
        "data.concurrent_reads": draw(st.integers(1, 3)),
        "training.seed": draw(st.integers(0, 3)),
        "data.augment.crop_scale": draw(st.sampled_from([1.0, 0.5])),
    }
    if draw(st.booleans()):
        changes["data.limit"] = draw(st.integers(1, rows_of(name)))
    others = draw(st.lists(st.sampled_from(list(SHARDS)), max_size=2, unique=True))
    return name, changes, [other for other in others if other != name]


def stream_of(
    folders: dict[str, Path], name: str, changes: dict[str, object], others: list[str], **more: object
) -> Stream:
    mix = [{"path": str(folders[other]), **more} for other in others]
    return Stream.of(recipe(folders, name, **changes, **{"data.mix": mix}), MODEL)


def joined(batches: list[Batch]) -> Batch:
    names = ("images", "tokens", "image_ids", "caption_ids")
    return Batch(**{name: torch.cat([getattr(batch, name) for batch in batches]) for name in names})


def assert_same(ours: Batch, theirs: Batch) -> None:
    for name in ("images", "tokens", "image_ids", "caption_ids"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name


@settings(max_examples=25, deadline=None)
@given(chosen=stream_settings(), data=st.data())
def test_any_range_in_any_shares_is_a_slice_of_the_whole(
    folders: dict[str, Path], chosen: tuple[str, dict[str, object], list[str]], data: st.DataObject
) -> None:
    stream = stream_of(folders, *chosen)
    size, workers = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 4))
    end = 2 * stream.rows + data.draw(st.integers(0, 8))
    whole = joined(list(thread_batches(stream, size, 0, end)))
    start = data.draw(st.integers(0, end - 1))
    stop = data.draw(st.integers(start + 1, end))
    parts = [list(thread_batches(stream, size, start, stop, rank, workers)) for rank in range(workers)]
    assert_same(joined(list(chain(*zip(*parts, strict=True)))), whole[slice(start, stop)])
    assert [sum(map(len, batches)) for batches in zip(*parts, strict=True)] == [
        min(size, stop - first) for first in range(start, stop, size)
    ]
    rank = data.draw(st.integers(0, workers - 1))
    for decoder in (None, stream.decoder):
        # what tasks of Ray Data read, in blocks of a few rows
        reader = PartReader(stream.sources, stream.captions, stream.unique_batch, decoder)
        needed = list(parts_of(stream.sources, stream.mixture, size, start, stop, rank, workers))
        assert len({part.key for part in needed}) == len(needed)  # each window is read once
        ranges = list(shares(size, start, stop, rank, workers))
        assert sum(part.rows for part in needed) == sum(last - first for first, last in ranges)
        received = received_batches(stream, ranges, blocks_of(reader, needed))
        for batch, read in zip(received, parts[rank], strict=True):
            assert_same(batch, read)


def blocks_of(reader: PartReader, needed: list[Part]) -> Iterator[Block]:
    """What Ray Data yields, computed in this process."""
    for part in needed:
        first = 0
        for table in reader.blocks(part):
            for batch in table.to_batches(max_chunksize=5):
                yield part, first, Group.of_table(batch)
                first += batch.num_rows


@settings(max_examples=40, deadline=None)
@given(chosen=stream_settings())
def test_each_sample_is_read_exactly_once_per_epoch(
    folders: dict[str, Path], chosen: tuple[str, dict[str, object], list[str]]
) -> None:
    stream = stream_of(folders, *chosen)
    name, changes, others = chosen
    kept = changes.get("data.limit") or rows_of(name)
    windows = stream.windows(("id", "captions"))
    for epoch in range(2):
        ids = [sample.id for sample in stream.samples(epoch * stream.rows, (epoch + 1) * stream.rows, windows)]
        assert len(set(ids)) == len(ids) == kept + sum(map(rows_of, others))
        counts = Counter(sample_id.partition("-")[0] for sample_id in ids)
        assert counts == Counter({name: kept} | {other: rows_of(other) for other in others})


def test_a_weight_is_how_often_a_sample_is_read(folders: dict[str, Path]) -> None:
    stream = stream_of(folders, "even", {}, ["one"], weight=2.0)
    samples = stream.samples(0, 36 + 18, stream.windows(("id", "captions")))
    counts = Counter(sample.id for sample in samples)
    assert all(count == (2 if sample_id.startswith("one") else 1) for sample_id, count in counts.items())
    assert len(counts) == 36 + 9


@settings(max_examples=15, deadline=None)
@given(window=st.integers(3, 9), seed=st.integers(0, 5), size=st.integers(2, 6), data=st.data())
def test_no_caption_is_in_a_batch_twice(
    folders: dict[str, Path], window: int, seed: int, size: int, data: st.DataObject
) -> None:
    """Each of eleven captions has three or four of 36 samples: a window of all samples can separate them."""
    changes = {"data.window_row_groups": window, "training.seed": seed, "training.batch_size": size}
    changes |= {"data.synthetic_share": 0.0, "data.unique_captions": True}
    stream = stream_of(folders, "even", changes, [])
    batches = list(thread_batches(stream, size, 0, 72 // size * size))
    plain = stream_of(folders, "even", changes | {"data.unique_captions": False}, [])
    repeated, by_chance = (
        sum(
            len(batch) - len(batch.caption_ids.unique()) for batch in thread_batches(each, size, 0, 72 // size * size)
        )
        for each in (stream, plain)
    )
    assert repeated == 0 if window == 9 else repeated <= by_chance
    order = [sample.id for sample in stream.samples(0, 36, stream.windows(("id", "captions")))]
    others = [sample.id for sample in plain.samples(0, 36, plain.windows(("id", "captions")))]
    assert sorted(order) == sorted(others)
    first = data.draw(st.integers(0, len(batches) - 1))
    again = list(thread_batches(stream, size, first * size, len(batches) * size))
    assert_same(joined(again), joined(batches[first:]))


def test_the_cursor_has_the_position_and_refuses_other_data(folders: dict[str, Path]) -> None:
    stream = stream_of(folders, "even", {}, [])
    cursor = stream.cursor(36 + 30)
    assert (cursor.position, cursor.epoch, cursor.seed) == (66, 1, 0)
    assert len(cursor.model_dump_json()) < 200
    check_cursor(cursor.model_dump(mode="json"), stream_of(folders, "even", {}, []).cursor(0))
    saved = cursor.model_dump(mode="json")
    with pytest.raises(UserError, match=rf"run: it was trained .* hash {cursor.datasets[0]}, but the recipe's"):
        check_cursor(saved, stream_of(folders, "uneven", {}, []).cursor(0), "run: it")
    for changes in (
        {"data.limit": 20},
        {"data.window_row_groups": 2},
        {"data.synthetic_share": 0.1},
        {"data.augment.jitter": 0.1},
        {"training.seed": 1},
    ):
        with pytest.raises(UserError, match="another order"):
            check_cursor(saved, stream_of(folders, "even", changes, []).cursor(0))
    with pytest.raises(UserError, match="manifest hash"):
        check_cursor(saved, stream_of(folders, "even", {}, ["one"]).cursor(0))
    for same in ({"data.concurrent_reads": 3}, {"data.reader": "ray"}):
        check_cursor(saved, stream_of(folders, "even", same, []).cursor(0))
    with pytest.raises(UserError, match="has no readable data cursor"):
        check_cursor({"position": 3}, cursor)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.limit": 37}, r"limit 37 is above the 36 samples"),
        ({"data.mix": [{"path": "x", "weight": 0}]}, "greater than 0"),
        ({"data.unique_captions": True, "data.window_row_groups": 2}, "raise data.window_row_groups"),
        ({"data.unique_captions": True, "data.mix": [{"path": "x"}]}, "remove unique_captions or mix"),
        ({"data.trunk_cache": "x", "data.augment.jitter": 0.5}, "remove mix and augment"),
        ({"data.teacher_embeddings": "x", "data.augment.jitter": 0.5}, "remove augment"),
        ({"data.captions": ["nothing"]}, "has no finished captions 'nothing'"),
        ({"data.teacher_embeddings": "nothing"}, "has no finished embeddings 'nothing'"),
    ],
)
def test_invalid_combinations_are_refused(folders: dict[str, Path], changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Stream.of(recipe(folders, "even", **changes), MODEL)


def test_a_broken_image_raises_in_place_of_its_batch(folders: dict[str, Path], tmp_path: Path) -> None:
    rows = [row(f"x-{i}", i) for i in range(20)]
    rows[11]["image"] = b"\x89PNG nothing"
    entry = write_shard(pa.Table.from_pylist(rows, SCHEMA), tmp_path / "train-0.parquet", 20)
    write_manifest(tmp_path, Manifest(name="x", version="1", recipe={}, splits={"train": [entry]}))
    stream = Stream.of(digits_student(tmp_path), MODEL)
    samples = [sample.id for sample in stream.samples(0, 20, stream.windows(("id", "captions")))]
    batches = thread_batches(stream, 4, 0, 20)
    for _ in range(samples.index("x-11") // 4):
        assert len(next(batches)) == 4
    with pytest.raises(UserError, match="sample x-11 "):
        next(batches)
    with pytest.raises(StopIteration):
        next(batches)


def test_image_ids_are_the_samples_stable_ids(folders: dict[str, Path]) -> None:
    stream = stream_of(folders, "even", {}, [])
    batch = next(thread_batches(stream, 36, 0, 36))
    assert sorted(batch.image_ids.tolist()) == sorted(stable_id(f"even-{i}") for i in range(36))
