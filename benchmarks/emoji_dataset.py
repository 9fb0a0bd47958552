"""emoji64, a dataset for benchmarks: emoji of five vendors with their names, in the project's format.

    python benchmarks/emoji_dataset.py SOURCE_FOLDER DEST

SOURCE_FOLDER contains the Parquet files with the columns ``id`` ("vendor/code points"), ``image`` (JPEG),
``captions`` (label, label with tags, paraphrase; only the label if an emoji has no tags), ``category``, ``source``.

The train split is the emoji of four vendors. Those of the fifth, by another artist, are used only for measurement: a
stable hash of the id assigns about half of them to validation and the rest to test, because settings that are chosen
on images must not be measured on the same images. The labels are those of train: images are new, words are not.

The label is the original caption, the others are synthetic. Each row of validation and test has five false captions
in ``meta``: labels of other emoji of its category, the most similar in the words of label and tags. They come from
the measurement vendor's own emoji, because their artist drew both to be distinguishable; only a category in which
that vendor has too few is completed with labels of the other vendors.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg

from siclip.data.captions import stable_id
from siclip.errors import UserError
from siclip_platform.datasets.manifest import (
    MANIFEST,
    Dataset,
    Manifest,
    ShardEntry,
    open_dataset,
    write_manifest,
    write_shard,
)
from siclip_platform.datasets.schema import ORIGINAL, SCHEMA, SYNTHETIC

NAME = "emoji64"
# To be raised whenever the same files give other bytes.
VERSION = "1"
TRAIN_VENDORS = ("noto", "twemoji", "openmoji", "emojione")
MEASURING_VENDOR = "fxemoji"
SPLITS = ("train", "validation", "test")
COLUMNS = ("id", "image", "captions", "category", "source")
NEGATIVES = 5
ROW_GROUP_ROWS = 250
# The synthetic captions are composed of the tags in Unicode CLDR.
CAPTION_MODEL = "cldr-tags"

Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="folder with the emoji64 Parquet files")
    parser.add_argument("destination", type=Path, help="new or empty folder for the dataset")
    options = parser.parse_args(arguments)
    try:
        dataset = build_emoji_dataset(options.source, options.destination)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    counts = ", ".join(f"{split} {dataset.rows(split)}" for split in dataset.split_names)
    print(f"{dataset.folder}: {counts} (hash {dataset.hash})")
    return 0


def build_emoji_dataset(source: Path, destination: Path) -> Dataset:
    """Write the dataset, the manifest last. A folder that already contains it is reused.

    Raises:
        UserError: ``source`` is not a folder of emoji64, or ``destination`` contains something else.
    """
    files = sorted(source.glob("*.parquet"))
    if not files:
        raise UserError(f"{source} contains no Parquet files: name the folder with the emoji64 files")
    recipe = {"files": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}}
    if (destination / MANIFEST).exists():
        return _existing(destination, recipe)
    if destination.exists() and any(destination.iterdir()):
        raise UserError(f"{destination} is not empty: name a new or empty folder")
    rows = read_rows(files)
    destination.mkdir(parents=True, exist_ok=True)
    splits: dict[str, list[ShardEntry]] = {}
    for split in SPLITS:
        table = pa.Table.from_pylist(split_rows(rows, split), SCHEMA)
        splits[split] = [write_shard(table, destination / f"{split}-00000.parquet", ROW_GROUP_ROWS)]
    write_manifest(destination, Manifest(name=NAME, version=VERSION, recipe=recipe, splits=splits))
    return open_dataset(destination)


def read_rows(files: Iterable[Path]) -> list[Row]:
    """The rows of all files.

    Raises:
        UserError: a file lacks a column, a row has no caption, or an id names an unknown vendor.
    """
    rows: list[Row] = []
    for path in files:
        missing = set(COLUMNS) - set(pq.read_schema(path).names)
        if missing:
            raise UserError(f"{path} lacks the columns {', '.join(sorted(missing))}: is it a file of emoji64?")
        rows += pq.read_table(path, columns=list(COLUMNS)).to_pylist()
    for row in rows:
        if not row["captions"]:
            raise UserError(f"emoji {row['id']!r} has no caption: remove it from the source files")
        if vendor(row) not in (*TRAIN_VENDORS, MEASURING_VENDOR):
            known = ", ".join((*TRAIN_VENDORS, MEASURING_VENDOR))
            raise UserError(f"emoji {row['id']!r} is of an unknown vendor: an id starts with one of {known}")
    return rows


def split_rows(rows: Sequence[Row], split: str) -> list[Row]:
    """The rows of a split in the project's schema, in an order that mixes vendors and labels.

    Raises:
        UserError: the split would be empty, or a category is too small for the false captions.
    """
    chosen = sorted((row for row in rows if split_of(row) == split), key=lambda row: stable_id(row["id"]))
    if not chosen:
        vendors = ", ".join(TRAIN_VENDORS) if split == "train" else MEASURING_VENDOR
        raise UserError(f"the source files contain nothing for {split}: it needs emoji of {vendors}")
    by_label = {row["captions"][0]: row for row in sorted(rows, key=lambda row: vendor(row) == MEASURING_VENDOR)}
    return [_converted(row, {} if split == "train" else hard_negatives(row, by_label)) for row in chosen]


def split_of(row: Row) -> str:
    if vendor(row) != MEASURING_VENDOR:
        return "train"
    return ("validation", "test")[stable_id(row["id"]) % 2]


def vendor(row: Row) -> str:
    name: str = row["id"].partition("/")[0]
    return name


def hard_negatives(row: Row, by_label: Mapping[str, Row]) -> dict[str, str]:
    """Name → false caption, hardest first; none equals the row's own label.

    Args:
        row: a row of validation or test.
        by_label: label → an emoji with that label, the measurement vendor's if it has one.

    Raises:
        UserError: the category has too few labels.
    """
    own = row["captions"][0]
    ranks = {}
    for label, other in by_label.items():
        if other["category"] == row["category"] and label.casefold() != own.casefold():
            ratio = SequenceMatcher(None, own, label, autojunk=False).ratio()
            ranks[label] = (vendor(other) != MEASURING_VENDOR, -_shared_words(row, other), -ratio, label)
    if len(ranks) < NEGATIVES:
        raise UserError(
            f"category {row['category']!r} of emoji {row['id']!r} has {len(ranks)} other labels, "
            f"{NEGATIVES} are needed: include the files of all vendors"
        )
    hardest = sorted(ranks, key=ranks.__getitem__)[:NEGATIVES]
    return {f"alike_{number}": label for number, label in enumerate(hardest, 1)}


def _shared_words(one: Row, other: Row) -> float:
    """Jaccard index of the words of label and tags."""
    first, second = (set(re.findall(r"\w+", " ".join(row["captions"][:2]).casefold())) for row in (one, other))
    return len(first & second) / max(len(first | second), 1)


def _converted(row: Row, negatives: dict[str, str]) -> Row:
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(row["image"])
    except ValueError as error:
        raise UserError(f"the image of emoji {row['id']!r} is not a JPEG ({error}): remove the row") from None
    label, *more = row["captions"]
    captions = [{"text": label, "source": ORIGINAL, "model": None}]
    captions += [{"text": text, "source": SYNTHETIC, "model": CAPTION_MODEL} for text in more]
    meta = {"source": row["source"]} | ({"negatives": negatives} if negatives else {})
    return {
        "id": row["id"],
        "image": row["image"],
        "width": width,
        "height": height,
        "captions": captions,
        "category": row["category"],
        "meta": json.dumps(meta, separators=(",", ":"), ensure_ascii=False),
    }


def _existing(folder: Path, recipe: dict[str, Any]) -> Dataset:
    dataset = open_dataset(folder)
    found = dataset.manifest
    if (found.name, found.version, found.recipe) != (NAME, VERSION, recipe):
        raise UserError(f"{folder} contains the dataset {found.name!r} of other files: name a new or empty folder")
    return dataset


if __name__ == "__main__":
    sys.exit(main())
