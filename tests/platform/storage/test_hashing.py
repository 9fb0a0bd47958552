"""Stored hashes keep their digits: manifests, caches, cursors and studies written by earlier versions stay valid."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siclip_platform.datasets.derived.stage import Task
from siclip_platform.datasets.importing.parts import ImportConfig, PartJob
from siclip_platform.datasets.importing.sources.part import SourcePart
from siclip_platform.datasets.manifest import Manifest, ShardEntry
from siclip_platform.datasets.sidecar import SidecarManifest
from siclip_platform.recipes.digits import digits_student
from siclip_platform.storage import as_path
from siclip_platform.storage.hashing import canonical_hash, sha256_of
from siclip_platform.stream.trunk_features.key import TrunkCacheKey

ENTRY = ShardEntry(path="train-00000.parquet", rows=7, bytes=1234, sha256="ab" * 32, row_groups=3)
SPLITS = {"train": [ENTRY]}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def test_known_objects_keep_their_digits() -> None:
    """The digits were computed before the hashes had one implementation."""
    recipe = {"seed": 0, "scale": 0.5, "none": None}
    captions = {"kind": "captions", "name": "coca", "dataset": "0123456789abcdef", "recipe": {"beams": 3}}
    key = TrunkCacheKey(trunk="a" * 16, dataset="b" * 16, split="train", image_size=64, context_length=20)
    assert Manifest(name="kätzchen", version="1", recipe=recipe, splits=SPLITS).hash == "963550d99af3faf4"
    assert SidecarManifest.model_validate({**captions, "version": "1", "splits": SPLITS}).hash == "a43a108d4b404379"
    assert key.hash == "08c53d9a0678825c"
    assert Task(name="part-1", payload={"files": ["ä.jpg", "b.png"], "number": 1}).digest == "f3a9fec8fed15f06"


def test_a_recipe_is_named_by_its_fields() -> None:
    recipe = digits_student(Path("data"))
    text = json.dumps(recipe.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    assert recipe.hash == hashlib.sha256(text.encode()).hexdigest()[:12]


def test_an_unfinished_import_keeps_the_digits_of_its_tasks() -> None:
    part = SourcePart(layout="parquet", name="a.parquet", bytes=9, count=2)
    job = PartJob(root="r", number=0, piece=part, config=ImportConfig())
    assert Task(name="00000", payload=job.payload()).digest == "c6c182bca0a936dd"
    assert canonical_hash([part.model_dump(mode="json")], spaced=True) == "2ff4e53783eeaaae"


@pytest.mark.parametrize(("digits", "spaced"), [(12, False), (16, False), (16, True), (64, False)])
@given(tree=JSON)
def test_the_canonical_json_is_sorted_and_ascii(digits: int, spaced: bool, tree: object) -> None:
    text = json.dumps(tree, sort_keys=True) if spaced else json.dumps(tree, sort_keys=True, separators=(",", ":"))
    assert text.isascii()
    assert canonical_hash(tree, digits, spaced=spaced) == hashlib.sha256(text.encode()).hexdigest()[:digits]


def test_the_order_of_keys_has_no_effect() -> None:
    assert canonical_hash({"a": 1, "b": [1, 2]}) == canonical_hash({"b": [1, 2], "a": 1})
    assert canonical_hash({"a": 1, "b": [1, 2]}) != canonical_hash({"a": 1, "b": [2, 1]})


def test_a_file_has_the_same_sha256_locally_and_in_a_store(tmp_path: Path) -> None:
    content = bytes(range(256)) * 40_000  # more than one chunk
    here, there = tmp_path / "file", as_path("memory://hashing/file")
    here.write_bytes(content)
    there.write_bytes(content)
    assert sha256_of(here) == sha256_of(there) == hashlib.sha256(content).hexdigest()
