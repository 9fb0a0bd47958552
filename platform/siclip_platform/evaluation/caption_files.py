"""MSCOCO's and Flickr30k's own annotation files, beside their images.

    captions_*.json         MSCOCO: images with id and file_name, annotations with image_id and caption
    dataset_*.json          Karpathy's splits of either: images with filename, split and sentences
    *.token                 Flickr30k: FILE#NUMBER, a tab, the caption; with SPLIT.txt, the files of the split
    *annotations*.csv       Flickr30k: columns raw (JSON list), filename, split

Images lie in the folder itself, in ``images/``, in the sub-folder the file names, or in MSCOCO's ``val2014/``.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from siclip.errors import UserError
from siclip_platform.evaluation.sets import EvaluationSample, RetrievalData

PATTERNS = ("dataset_*.json", "captions_*.json", "*.token", "*annotations*.csv")
PLACES = ("", "images", "val2014", "val2017", "flickr30k-images", "flickr30k_images")
Captions = dict[str, list[str]]
"""Image file, as the annotations name it → its captions in order."""


def find_annotations(folder: Path) -> Path | None:
    """The annotation file in a folder or its ``annotations/``; Karpathy's splits before the others."""
    for pattern in PATTERNS:
        for base in (folder, folder / "annotations"):
            found = sorted(base.glob(pattern))
            if found:
                return next((path for path in found if "train" not in path.stem), found[0])
    return None


def read_captions(folder: Path, annotations: Path, split: str) -> RetrievalData:
    """
    Raises:
        UserError: the file is not of one of the formats, has no captions for the split, or images are not there.
    """
    try:
        captions = _parse(annotations, split)
    except (ValueError, KeyError, TypeError, IndexError, csv.Error) as error:
        raise UserError(f"{annotations} is not an annotation file of MSCOCO or Flickr30k: {error!r}") from None
    if not captions:
        raise UserError(f"{annotations} has no captions of split {split!r}: name another with --split")
    paths = {name: _locate(folder, name) for name in captions}
    missing = [name for name, path in paths.items() if path is None]
    if missing:
        raise UserError(
            f"{folder}: {len(missing)} of {len(captions)} images that {annotations.name} names are not there, the "
            f"first is {missing[0]}; put them into {folder / 'images'}"
        )

    def samples() -> Iterator[EvaluationSample]:
        for name, path in paths.items():
            if path is not None:
                yield EvaluationSample(name, path.read_bytes(), texts=tuple(captions[name]))

    return RetrievalData(folder.name, samples)


def _parse(annotations: Path, split: str) -> Captions:
    if annotations.suffix == ".token":
        return _flickr_tokens(annotations, split)
    if annotations.suffix == ".csv":
        with annotations.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["split"] == split]
        return {row["filename"]: json.loads(row["raw"]) for row in rows}
    tree: dict[str, Any] = json.loads(annotations.read_text(encoding="utf-8"))
    if "annotations" not in tree:
        chosen = [image for image in tree["images"] if image["split"] == split]
        return {_path(image): [sentence["raw"] for sentence in image["sentences"]] for image in chosen}
    by_id: dict[int, list[str]] = {}
    for annotation in tree["annotations"]:
        by_id.setdefault(annotation["image_id"], []).append(annotation["caption"])
    return {image["file_name"]: by_id[image["id"]] for image in tree["images"] if image["id"] in by_id}


def _path(image: dict[str, Any]) -> str:
    return "/".join(part for part in (image.get("filepath", ""), image["filename"]) if part)


def _flickr_tokens(annotations: Path, split: str) -> Captions:
    captions: Captions = {}
    for line in annotations.read_text(encoding="utf-8").splitlines():
        name, tab, text = line.partition("\t")
        if not tab:
            raise ValueError(f"no tab in {line!r}")
        captions.setdefault(name.rpartition("#")[0], []).append(text)
    lists = [annotations.parent / f"{split}.txt", annotations.parent / f"flickr30k_{split}.txt"]
    chosen = next((path for path in lists if path.is_file()), None)
    if chosen is None:
        raise UserError(
            f"{annotations} has all images and no split: write the files of split {split!r}, one a line, into "
            f"{lists[0]}"
        )
    return _only(captions, (line.strip() for line in chosen.read_text().splitlines() if line.strip()), chosen)


def _only(captions: Captions, names: Iterable[str], chosen: Path) -> Captions:
    kept: Captions = {}
    for name in names:
        file = name if name in captions else f"{name}.jpg"
        if file not in captions:
            raise UserError(f"{chosen} names {name}, which has no captions")
        kept[file] = captions[file]
    return kept


def _locate(folder: Path, name: str) -> Path | None:
    for place in PLACES:
        for relative in (name, Path(name).name):
            path = folder / place / relative
            if path.is_file():
                return path
    return None
