"""benchmarks/emoji_dataset.py: splits by vendor, captions, and hard false captions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import emoji_dataset
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simplejpeg

from siclip.errors import UserError
from siclip.models.registry import model_config
from siclip_platform.datasets.manifest import Dataset
from siclip_platform.stream import load_evaluation_set

# Label → tags.
ANIMALS = dict.fromkeys(("cow face", "goat"), "farm, milk") | dict.fromkeys(("ox", "pig"), "farm")
ANIMALS |= dict.fromkeys(("fish", "crab", "whale"), "sea") | {"cowface": ""}
FLAGS = ["flag: France", "flag: Peru", "flag: Chad", "flag: Mali", "flag: Togo"]


def emoji_row(vendor: str, number: int, label: str, tags: str, category: str) -> dict[str, Any]:
    image = np.full((64, 64, 3), number, dtype=np.uint8)
    captions = [label, f"{label}, {tags}", f"an emoji showing {tags}"] if tags else [label]
    return {
        "id": f"{vendor}/{number:x}",
        "image": simplejpeg.encode_jpeg(image),
        "captions": captions,
        "category": category,
        "source": f"converted from {vendor}",
    }


@pytest.fixture(scope="module")
def emoji_rows() -> list[dict[str, Any]]:
    """Rows of two vendors; the measurement vendor has all animals and a single flag."""
    rows = []
    for vendor in ("noto", "fxemoji"):
        rows += [emoji_row(vendor, n, label, tags, "animals") for n, (label, tags) in enumerate(ANIMALS.items())]
    rows += [emoji_row("noto", 100 + n, label, "", "flags") for n, label in enumerate(FLAGS)]
    return [*rows, emoji_row("fxemoji", 99, "crossed flags", "party", "flags")]


def write_source(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir()
    for vendor in {row["id"].split("/")[0] for row in rows}:
        own = [row for row in rows if row["id"].startswith(vendor)]
        pq.write_table(pa.Table.from_pylist(own), folder / f"emoji_{vendor}_64.parquet")
    return folder


@pytest.fixture(scope="module")
def emoji(emoji_rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("emoji")
    return emoji_dataset.build_emoji_dataset(write_source(folder / "source", emoji_rows), folder / "built")


def rows_of(data: Dataset, split: str) -> list[dict[str, Any]]:
    return [row for shard in data.shards(split) for row in pq.read_table(shard).to_pylist()]


def test_one_vendor_is_used_only_for_measurement(emoji: Dataset, emoji_rows: list[dict[str, Any]]) -> None:
    ids = {split: {row["id"] for row in rows_of(emoji, split)} for split in emoji.split_names}
    assert ids["train"] == {row["id"] for row in emoji_rows if row["id"].startswith("noto/")}
    assert ids["validation"] | ids["test"] == {row["id"] for row in emoji_rows if row["id"].startswith("fxemoji/")}
    assert ids["validation"] and ids["test"] and not ids["validation"] & ids["test"]


def test_images_and_captions_are_unchanged_and_the_label_is_the_original(
    emoji: Dataset, emoji_rows: list[dict[str, Any]]
) -> None:
    given = {row["id"]: row for row in emoji_rows}
    for row in [row for split in emoji.split_names for row in rows_of(emoji, split)]:
        assert row["image"] == given[row["id"]]["image"]
        assert (row["width"], row["height"], row["category"]) == (64, 64, given[row["id"]]["category"])
        assert [caption["text"] for caption in row["captions"]] == given[row["id"]]["captions"]
        sources = [caption["source"] for caption in row["captions"]]
        assert sources == ["original", *["synthetic"] * (len(sources) - 1)]


def test_false_captions_are_the_most_similar_of_the_category(emoji: Dataset) -> None:
    rows = [row for split in ("validation", "test") for row in rows_of(emoji, split)]
    negatives = {row["captions"][0]["text"]: list(json.loads(row["meta"])["negatives"].values()) for row in rows}
    for label, false in negatives.items():
        assert len(set(false)) == 5 and label not in false
        assert label == "crossed flags" or set(false) < set(ANIMALS)
    # By words of the tags in common (two, then one), then by the similarity of the spelling.
    assert negatives["cow face"][0] == "goat"
    assert set(negatives["cow face"][1:3]) == {"ox", "pig"}
    assert negatives["cow face"][3] == "cowface"
    assert set(negatives["fish"][:2]) == {"crab", "whale"}
    # The vendor has no other flag, so those of the others are used.
    assert set(negatives["crossed flags"]) == set(FLAGS)
    assert "negatives" not in json.loads(rows_of(emoji, "train")[0]["meta"])


def test_the_evaluation_reads_the_false_captions(emoji: Dataset) -> None:
    data = load_evaluation_set(emoji.folder, "test", model_config("siclip-nano"))
    assert data.negatives is not None and data.negatives.shape[:2] == (emoji.rows("test"), 5)


def test_the_same_files_give_the_same_dataset(
    emoji: Dataset, emoji_rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    source = write_source(tmp_path / "source", emoji_rows)
    again = emoji_dataset.build_emoji_dataset(source, tmp_path / "built")
    assert again.hash == emoji.hash
    assert emoji_dataset.build_emoji_dataset(source, tmp_path / "built").hash == emoji.hash
    write_source(tmp_path / "other", emoji_rows[:-1])
    with pytest.raises(UserError, match="of other files"):
        emoji_dataset.build_emoji_dataset(tmp_path / "other", tmp_path / "built")


def test_files_that_are_not_emoji64_are_refused(emoji_rows: list[dict[str, Any]], tmp_path: Path) -> None:
    foreign = [emoji_row("vendor-x", 1, "cow face", "", "animals")]
    few = [row for row in emoji_rows if row["id"] not in {"noto/64", "noto/65"}]
    nameless = [{k: v for k, v in row.items() if k != "captions"} for row in emoji_rows]
    cases = {"of an unknown vendor": foreign, "5 are needed": few, "lacks the columns captions": nameless}
    for number, (message, rows) in enumerate(cases.items()):
        source = write_source(tmp_path / f"source-{number}", rows)
        with pytest.raises(UserError, match=message):
            emoji_dataset.build_emoji_dataset(source, tmp_path / f"built-{number}")
    assert emoji_dataset.main([str(tmp_path), str(tmp_path / "built")]) == 2
