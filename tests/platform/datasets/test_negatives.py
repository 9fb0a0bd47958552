"""False captions in ``meta``: what is read as such, and a user's own column of the same name, which is not."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from siclip.models.registry import model_config
from siclip.tokenizer import tokenize
from siclip_platform.datasets.manifest import Manifest, write_manifest, write_shard
from siclip_platform.datasets.negatives import negatives_of
from siclip_platform.datasets.schema import SCHEMA
from siclip_platform.evaluation.datasets import read_dataset
from siclip_platform.storage import as_path
from siclip_platform.stream.evaluation_set import load_evaluation_set

ROWS = 4
OWN_COLUMNS: dict[str, Any] = {
    "a list": ["a wrong one", "another wrong one"],
    "a text": "a wrong one",
    "a number": 3,
    "null": None,
    "nothing": {},
    "null in a kind": {"swap": None},
    "a number in a kind": {"swap": 3},
    "a blank text": {"swap": " "},
    "no text": {"swap": []},
    "a mapping in a kind": {"swap": {"a": "b"}},
    "a kind that no metric can have": {"swap(\n)": "a wrong one"},
}


def dataset(folder: Path, metas: list[str | None]) -> Path:
    rows = []
    for index, meta in enumerate(metas):
        data = io.BytesIO()
        Image.new("RGB", (64, 64), (40 * index, 10, 99)).save(data, "PNG")
        captions = [{"text": f"a right caption {index}", "source": "original", "model": None}]
        sizes = {"width": 64, "height": 64, "category": None, "meta": meta}
        rows.append({"id": str(index), "image": data.getvalue(), "captions": captions, **sizes})
    folder.mkdir(parents=True)
    shard = write_shard(pa.Table.from_pylist(rows, SCHEMA), folder / "validation-00000.parquet", row_group_size=4)
    write_manifest(folder, Manifest(name="n", version="1", recipe={}, splits={"validation": [shard]}))
    return folder


def metas(*negatives: Any) -> list[str | None]:
    return [json.dumps({"negatives": each}) for each in negatives]


@pytest.mark.parametrize("own", OWN_COLUMNS.values(), ids=OWN_COLUMNS.keys())
def test_a_column_of_the_users_own_does_not_break_an_evaluation(own: Any, tmp_path: Path) -> None:
    folder = dataset(tmp_path / "data", metas(*[own] * ROWS))
    data = load_evaluation_set(folder, "validation", model_config("siclip-nano"))
    assert data.negatives is None and len(data.images) == ROWS
    retrieval, composition = read_dataset(as_path(str(folder)), "validation")
    assert composition is None and len(list(retrieval.samples())) == ROWS


@pytest.mark.parametrize("meta", ["[]", "3", "not JSON", "[" * 100_000, '{"a": ' + "9" * 5000 + "}", "", None])
def test_a_meta_that_another_program_wrote_names_no_negatives(meta: str | None, tmp_path: Path) -> None:
    assert negatives_of(meta) == {}
    folder = dataset(tmp_path / "data", [meta] * ROWS)
    assert load_evaluation_set(folder, "validation", model_config("siclip-nano")).negatives is None
    assert read_dataset(as_path(str(folder)), "validation")[1] is None


def test_lists_of_texts_by_kind_are_negatives(tmp_path: Path) -> None:
    given = [{"swap": [f"wrong {row}", f"also {row}"], "replace": f"other {row}"} for row in range(ROWS)]
    folder = dataset(tmp_path / "data", metas(*given))
    model = model_config("siclip-nano")
    data = load_evaluation_set(folder, "validation", model)
    texts = [[f"wrong {row}", f"also {row}", f"other {row}"] for row in range(ROWS)]
    assert data.negatives is not None
    for row in range(ROWS):
        assert data.negatives[row].equal(tokenize(texts[row], model.text.context_length))
    composition = read_dataset(as_path(str(folder)), "validation")[1]
    assert composition is not None
    for row, item in enumerate(composition.items):
        found = {kind: [composition.texts[text] for text in false] for kind, false in item.false}
        assert found == {"swap": texts[row][:2], "replace": texts[row][2:]}
        assert composition.texts[item.true] == f"a right caption {row}"


def test_negatives_of_some_samples_are_none_of_the_set(tmp_path: Path) -> None:
    folder = dataset(tmp_path / "data", [*metas({"swap": "wrong"}, {"swap": "wrong"}), None, "{}"])
    assert load_evaluation_set(folder, "validation", model_config("siclip-nano")).negatives is None
    assert read_dataset(as_path(str(folder)), "validation")[1] is None


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@given(JSON, JSON)
def test_any_json_gives_kinds_of_texts_or_nothing(negatives: Any, other: Any) -> None:
    for tree in (negatives, {"negatives": negatives, "other": other}):
        for kind, texts in negatives_of(json.dumps(tree)).items():
            assert kind and texts and all(isinstance(text, str) and text.strip() for text in texts)
