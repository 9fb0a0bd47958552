"""Read MSCOCO and Flickr30k as DataComp downloads them: the cache of Hugging Face's `datasets`.

    DATA/hf_cache/nlphuji___NAME/…/*-SPLIT.arrow    or *-SPLIT-00000-of-00002.arrow; columns image and caption

``image`` has bytes or the path of a file, ``caption`` a list of texts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from siclip.errors import UserError
from siclip.evaluation.suite import SuiteSet
from siclip_platform.evaluation.sets import EvaluationSample, RetrievalData, texts_of

CACHE = "hf_cache"
COLUMNS = ("image", "caption")


def cache_folder(known: SuiteSet, data: Path) -> Path:
    """Return the folder in which DataComp's evaluation searches for a retrieval set."""
    return data / CACHE / f"nlphuji___{known.key.removeprefix('retrieval/')}"


def find_arrow(folder: Path, split: str) -> list[Path]:
    """Return the files of a split in order, without those that ``map`` and ``filter`` write beside them.

    Raises:
        UserError: the folder has several versions of the split, or none.
    """
    # ``map`` and ``filter`` write cache-*.arrow
    found = sorted({*folder.rglob(f"*-{split}.arrow"), *folder.rglob(f"*-{split}-*-of-*.arrow")})
    if not found:
        raise UserError(f"{folder} has no *-{split}.arrow: download the set again, or name another split")
    folders = sorted({path.parent for path in found})
    if len(folders) > 1:
        raise UserError(f"{folder} has split {split!r} in {folders[0]} and in {folders[1]}: delete one of them")
    return found


def read_hub_cache(folder: Path, files: list[Path]) -> RetrievalData:
    """Open a set with captions.

    Raises:
        UserError: a file cannot be read or lacks a column; while reading samples: an image file is missing.
    """
    for file in files:
        missing = [name for name in COLUMNS if name not in _names(file)]
        if missing:
            raise UserError(f"{file} has no column {missing[0]!r}: it is not a set with captions")

    def samples() -> Iterator[EvaluationSample]:
        count = 0
        for file in files:
            # mapped: the files are several GB
            with pa.memory_map(str(file)) as source:
                for batch in pa.ipc.open_stream(source):
                    for row in batch.select(COLUMNS).to_pylist():
                        key = f"{file.name}:{count}"
                        yield EvaluationSample(key, _bytes(row["image"], file), texts=_texts(row["caption"], key))
                        count += 1

    return RetrievalData(folder.name, samples)


def _texts(caption: Any, key: str) -> tuple[str, ...]:
    try:
        # some uploads have the list as JSON text
        if isinstance(caption, str) and caption.lstrip().startswith('["'):
            caption = json.loads(caption)
        return tuple(texts_of(caption))
    except ValueError as error:
        raise UserError(f"the captions of {key} cannot be read: {error}; remove the row") from None


def _names(file: Path) -> list[str]:
    try:
        with pa.memory_map(str(file)) as source:
            return list(pa.ipc.open_stream(source).schema.names)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file} cannot be read ({error}): download the set again") from None


def _bytes(image: Any, file: Path) -> bytes:
    if not isinstance(image, dict) or (image.get("bytes") is None and image.get("path") is None):
        raise UserError(f"{file} has a row without an image: download the set again")
    if image["bytes"] is not None:
        return bytes(image["bytes"])
    path = Path(image["path"])
    if not path.is_file():
        raise UserError(f"{file} names image {path}, which does not exist: download the set again")
    return path.read_bytes()
