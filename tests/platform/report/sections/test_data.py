"""The data summary that a run logs, and the report of it."""

from __future__ import annotations

import base64
import io
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from report_pages import report
from report_store import Ablation, SyntheticStore, add_ablation

from siclip_platform.datasets.manifest import open_dataset
from siclip_platform.datasets.tools.summary import DataSummary, read_summary, summarize_dataset, write_summary


@pytest.fixture(scope="module")
def summary(digits: Path, nano_teacher: Path) -> DataSummary:
    return summarize_dataset(open_dataset(digits), checkpoint=nano_teacher, split="validation", examples=4)


def test_sizes_and_captions_match_the_files(digits: Path, summary: DataSummary) -> None:
    manifest = json.loads((digits / "manifest.json").read_text())
    assert set(summary.splits) == set(manifest["splits"])
    for name, entries in manifest["splits"].items():
        assert summary.splits[name].rows == sum(entry["rows"] for entry in entries)
        assert summary.splits[name].bytes == sum((digits / entry["path"]).stat().st_size for entry in entries)
    rows = pq.read_table(digits / manifest["splits"]["validation"][0]["path"])["captions"].to_pylist()
    texts = [caption["text"] for row in rows for caption in row]
    found = summary.splits["validation"]
    assert found.captions_per_image == pytest.approx(len(texts) / len(rows))
    assert found.words_mean == pytest.approx(sum(len(text.split()) for text in texts) / len(texts))
    assert found.distinct_share == pytest.approx(len(set(texts)) / len(texts))
    assert sum(found.sources.values()) == len(texts)


def test_examples_are_small_images_with_the_models_retrievals(digits: Path, summary: DataSummary) -> None:
    entry = json.loads((digits / "manifest.json").read_text())["splits"]["validation"][0]
    rows = pq.read_table(digits / entry["path"])["captions"].to_pylist()
    own = {tuple(caption["text"] for caption in row) for row in rows}
    assert summary.pool == len(rows)
    assert len(summary.examples) == 4
    for example in summary.examples:
        image = Image.open(io.BytesIO(base64.b64decode(example.image.partition(",")[2])))
        assert image.format == "JPEG" and max(image.size) <= 128
        assert example.captions in own
        assert len(example.retrieved) == 3
        assert all(one.right == (one.caption in example.captions) for one in example.retrieved)
    # The teacher is untrained, so it must be wrong somewhere.
    assert any(not example.retrieved[0].right for example in summary.examples)


def test_rejected_rows_are_counted_from_the_ledger(digits: Path, tmp_path: Path) -> None:
    shutil.copytree(digits, tmp_path / "data")
    ledger = pa.table({"reason": ["truncated", "empty caption", "truncated"]})
    pq.write_table(ledger, tmp_path / "data" / "ledger.parquet")
    found = summarize_dataset(open_dataset(tmp_path / "data"), examples=2)
    assert found.rejected == {"truncated": 2, "empty caption": 1}
    assert found.pool == 0 and all(not example.retrieved for example in found.examples)


def test_the_report_shows_the_summary(summary: DataSummary, tmp_path: Path, mlflow_database: bytes) -> None:
    store = SyntheticStore(tmp_path / "store", mlflow_database)
    study = add_ablation(store, store.experiment("data"), "data", Ablation({"a": 0.1, "b": 0.2}, seeds=(0,)))
    made = summary.model_copy(update={"rejected": {"truncated": 2}})
    path = write_summary(made, tmp_path)
    assert read_summary(path.read_text()) == made
    store.client.log_artifact(study, str(path))
    page, twin = report(store.uri, tmp_path)
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert [image["src"] for image in images] == [example.image for example in summary.examples]
    assert all(image["alt"] for image in images)
    assert page.column("splits", "rows") == [f"{split.rows:,}" for split in summary.splits.values()]
    assert page.column("rejected", "reason") == ["truncated"]
    for example in summary.examples:
        for one in example.retrieved:
            assert f"{'✓ right:' if one.right else '✗ wrong:'} {one.caption}" in page.text
    assert summary.examples[0].captions[0] in twin
