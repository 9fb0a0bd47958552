"""Read the annotation files of MSCOCO and Flickr30k, with images beside them.

    captions_*.json         MSCOCO: images with id and file_name, annotations with image_id and caption
    dataset_*.json          Karpathy's splits of either: images with filename, split and sentences
    *.token                 Flickr30k: FILE#NUMBER, a tab, the caption; with SPLIT.txt, the files of the split
    *annotations*.csv       Flickr30k: columns raw (a list of captions as JSON), filename, split

A file that several entries name is one image with all of their captions. A caption is a text or a list of texts; null
is refused.

Images are in the folder itself, in a sub-folder that the file names, or in one of `IMAGE_FOLDERS`.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from siclip.errors import UserError
from siclip_platform.evaluation.sets import EvaluationSample, RetrievalData, find_file, texts_of
from siclip_platform.storage.text_files import read_lines, read_text

PATTERNS = ("dataset_*.json", "captions_*.json", "*.token", "*annotations*.csv")
IMAGE_FOLDERS = ("", "images", "val2014", "val2017", "flickr30k-images", "flickr30k_images")
Captions = dict[str, list[str]]
"""Image file as the annotations name it → its captions in order."""


def find_annotations(folder: Path) -> Path | None:
    """Return the annotation file in a folder or its ``annotations/``, None if there is none.

    Karpathy's splits are preferred to the others, and a file that is not for training to one that is.
    """
    for pattern in PATTERNS:
        for base in (folder, folder / "annotations"):
            found = sorted(base.glob(pattern))
            if found:
                # MSCOCO's folder has the annotations of the training images too
                return next((path for path in found if "train" not in path.stem), found[0])
    return None


def read_captions(folder: Path, annotations: Path, split: str) -> RetrievalData:
    """Open a set with captions.

    Raises:
        UserError: the file has none of the formats or no captions of the split, or images are missing.
    """
    try:
        captions = _parse(annotations, split)
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError, csv.Error) as error:
        raise UserError(f"{annotations} is not an annotation file of MSCOCO or Flickr30k: {error!r}") from None
    if not captions:
        raise UserError(f"{annotations} has no captions of split {split!r}: name another with --split")
    paths = {name: _locate(folder, name) for name in captions}
    missing = [name for name, path in paths.items() if path is None]
    if missing:
        raise UserError(
            f"{folder}: {len(missing)} of {len(captions)} images that {annotations.name} names are missing, the "
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
        rows = csv.DictReader(io.StringIO(read_text(annotations), newline=""))
        return _joined((row["filename"], json.loads(row["raw"])) for row in rows if row["split"] == split)
    tree: dict[str, Any] = json.loads(read_text(annotations))
    if "annotations" not in tree:
        chosen = [image for image in tree["images"] if image["split"] == split]
        return _joined((_path(image), sentence["raw"]) for image in chosen for sentence in image["sentences"])
    by_id: dict[Any, list[Any]] = {}
    for annotation in tree["annotations"]:
        by_id.setdefault(annotation["image_id"], []).append(annotation["caption"])
    # a list of images may name one twice, by the same id
    images = dict.fromkeys((image["file_name"], image["id"]) for image in tree["images"])
    return _joined((file, caption) for file, identity in images for caption in by_id.get(identity, ()))


def _joined(rows: Iterable[tuple[Any, Any]]) -> Captions:
    """The captions by file; one file may be in several rows."""
    captions: Captions = {}
    for file, given in rows:
        if not isinstance(file, str) or not file:
            raise ValueError(f"the file of an image is {file!r}")
        try:
            captions.setdefault(file, []).extend(texts_of(given))
        except ValueError as error:
            raise ValueError(f"a caption of {file}: {error}") from None
    return captions


def _path(image: dict[str, Any]) -> str:
    return "/".join(part for part in (image.get("filepath"), image["filename"]) if part)


def _flickr_tokens(annotations: Path, split: str) -> Captions:
    captions: Captions = {}
    for line in read_lines(annotations):
        if not line.strip():
            continue
        name, tab, text = line.partition("\t")
        if not tab:
            raise ValueError(f"no tab in {line!r}")
        captions.setdefault(name.rpartition("#")[0], []).append(text)
    lists = [annotations.parent / f"{split}.txt", annotations.parent / f"flickr30k_{split}.txt"]
    chosen = next((path for path in lists if path.is_file()), None)
    if chosen is None:
        raise UserError(
            f"{annotations} has all images and no split: write the files of split {split!r}, one per line, into "
            f"{lists[0]}"
        )
    return _only(captions, (line.strip() for line in read_lines(chosen) if line.strip()), chosen)


def _only(captions: Captions, names: Iterable[str], chosen: Path) -> Captions:
    kept: Captions = {}
    for name in names:
        # Flickr30k's lists of splits name files without their extension
        file = name if name in captions else f"{name}.jpg"
        if file not in captions:
            raise UserError(f"{chosen} names {name}, which has no captions in the annotation file: remove the line")
        kept[file] = captions[file]
    return kept


def _locate(folder: Path, name: str) -> Path | None:
    for images in IMAGE_FOLDERS:
        # annotations may name a sub-folder that the download does not have
        for relative in (name, Path(name).name):
            path = find_file(folder / images, relative)
            if path is not None:
                return path
    return None
