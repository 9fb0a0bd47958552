"""Duplicates compared with a plain double loop, and in an import."""

from __future__ import annotations

import io
from pathlib import Path

import imagehash
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from siclip_platform.datasets.derived.stage import Pool
from siclip_platform.datasets.importing import duplicates
from siclip_platform.datasets.importing.duplicates import near, repeated
from siclip_platform.datasets.importing.ingest import Imported, import_dataset
from siclip_platform.datasets.importing.parts import ImportConfig, perceptual_hash
from siclip_platform.datasets.importing.sources.columns import ColumnNames
from siclip_platform.datasets.importing.sources.find import find_source

BASE = [0, 2**64 - 1, 0x0123456789ABCDEF]


@st.composite
def hash_lists(draw: st.DrawFn) -> list[int]:
    """Hashes near each other: a few centres with some bits flipped."""
    bits = st.lists(st.integers(0, 63), max_size=6)
    return [
        draw(st.sampled_from(BASE)) ^ sum({1 << bit for bit in draw(bits)}) for _ in range(draw(st.integers(0, 14)))
    ]


@settings(max_examples=150, deadline=None)
@given(hash_lists(), st.integers(0, 8), st.integers(1, 4), st.data())
def test_near_duplicates_are_those_of_a_double_loop(
    hashes: list[int], most: int, shared: int, data: st.DataObject
) -> None:
    kept = np.array([data.draw(st.booleans()) for _ in hashes], bool)
    with pytest.MonkeyPatch.context() as patch:
        # The number of bands is chosen by cost, which would leave most of them untested here.
        patch.setattr(duplicates, "_bands", lambda rows, most: most + shared)
        dropped, originals = near(np.array(hashes, np.uint64), kept, most)
    staying: list[int] = []
    expected = {}
    for position in np.flatnonzero(kept):
        close = [s for s in staying if (hashes[position] ^ hashes[s]).bit_count() <= most]
        if close:
            expected[int(position)] = close[0]
        else:
            staying.append(int(position))
    assert dict(zip(dropped.tolist(), originals.tolist(), strict=True)).keys() == expected.keys()
    for position, original in zip(dropped.tolist(), originals.tolist(), strict=True):
        assert original in staying
        assert (hashes[position] ^ hashes[original]).bit_count() <= most


@pytest.mark.parametrize("most", [1, 4, 8])
@pytest.mark.parametrize("shared", [1, 3])
def test_every_near_pair_is_found_once(most: int, shared: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(most)
    centres = rng.integers(0, 2**64, 40, dtype=np.uint64)
    flipped = np.bitwise_or.reduce(np.uint64(1) << rng.integers(0, 64, (400, 5), dtype=np.uint64), axis=1)
    values = np.unique(np.concatenate([centres, centres[rng.integers(0, 40, 400)] ^ flipped]))
    monkeypatch.setattr(duplicates, "_bands", lambda rows, most: most + shared)
    found = list(duplicates._pairs(values, most))
    distance = np.bitwise_count(values[:, None] ^ values[None, :])
    expected = np.argwhere(np.tril(distance <= most, -1))
    assert found == [tuple(pair) for pair in expected.tolist()]
    assert len(found) > (20 if most > 1 else -1)


def test_hashes_of_large_sets_are_cut_into_more_bands() -> None:
    assert [duplicates._bands(12_000_000, most) - most for most in (4, 8)] == [2, 4]
    assert duplicates._bands(100, 8) == 9


def test_the_first_kept_of_repeated_values_is_the_original() -> None:
    values = pa.chunked_array([["a", "b", "a"], ["c", "b", "a"]])
    later, first = repeated(values, np.array([False, True, True, True, True, True]))
    assert (later.tolist(), first.tolist()) == ([4, 5], [1, 2])


def save(path: Path, image: Image.Image, caption: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    path.with_suffix(".txt").write_text(caption)


def noise(seed: int) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((80, 80), Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two parts of three images: b is a copy of a, d is a slightly brighter a, the others are different."""
    for number, name in enumerate("acef"):
        save(tmp_path / f"in/{name}.png", noise(number), f"image {name}")
    (tmp_path / "in/b.png").write_bytes((tmp_path / "in/a.png").read_bytes())
    (tmp_path / "in/b.txt").write_text("another caption")
    save(tmp_path / "in/d.png", noise(0).point(lambda value: min(value + 3, 255)), "a with more light")
    return tmp_path


def run(folder: Path, out: str, config: ImportConfig) -> tuple[Imported, list[str], dict[str, tuple[str, str]]]:
    source = find_source(str(folder / "in"), None, ColumnNames(), config.shard_rows)
    done = import_dataset(source, folder / out, config, pool=Pool(here=True))
    ids = [i for path in done.dataset.shards("train") for i in pq.read_table(path)["id"].to_pylist()]
    ledger = pq.read_table(folder / out / "ledger.parquet").to_pylist()
    return done, ids, {row["id"]: (row["reason"], row["detail"]) for row in ledger}


@pytest.mark.slow  # imagehash imports scipy
def test_duplicates_are_dropped_on_request_across_all_shards(folder: Path) -> None:
    config = ImportConfig(shard_rows=3)
    assert run(folder, "all", config)[1] == list("abcdef")
    done, ids, ledger = run(folder, "exact", config.model_copy(update={"drop_duplicates": True}))
    assert ids == list("acdef")
    assert ledger == {"b": ("duplicate image", "'a' comes first")}
    assert (done.read, done.rejected) == (6, {"duplicate image": 1})
    both = config.model_copy(update={"drop_duplicates": True, "near_duplicates": 4})
    done, ids, ledger = run(folder, "near", both)
    assert ids == list("acef")
    assert ledger["d"] == ("near duplicate", "'a' comes first")
    one_shard = run(folder, "near2", both.model_copy(update={"shard_rows": 100}))
    assert one_shard[1:] == (ids, ledger)


@pytest.mark.slow
def test_the_perceptual_hash_is_that_of_imagehash() -> None:
    image = noise(3)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    mine = perceptual_hash(np.asarray(image))
    assert bin(mine ^ int(str(imagehash.phash(Image.open(buffer))), 16)).count("1") == 0
