"""Read CLIP_benchmark's webdataset layout, in which DataComp publishes its sets.

FOLDER/SPLIT/nshards.txt, 0.tar, 1.tar …    members KEY.jpg (png, webp), KEY.cls, KEY.npy, KEY.txt
FOLDER/classnames.txt                       one name per line, in the order of the labels
FOLDER/zeroshot_classification_templates.txt    one per line, with {c} for the name
FOLDER/dataset_type.txt                     classification (default), multilabel or retrieval
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from siclip.errors import UserError
from siclip_platform.datasets.importing.sources.archive import BROKEN_ARCHIVE, Archive
from siclip_platform.datasets.importing.sources.limits import MAX_FILE_BYTES, MAX_SAMPLE_FILES, MAX_TEXT_BYTES
from siclip_platform.datasets.importing.sources.members import split_name
from siclip_platform.evaluation.prompts import class_prompts, class_prompts_missing
from siclip_platform.evaluation.sets import ClassificationData, Data, EvaluationSample, RetrievalData
from siclip_platform.storage.text_files import read_text

SHARDS = "nshards.txt"
TYPE = "dataset_type.txt"
IMAGES = ("webp", "png", "jpg", "jpeg")
LABELS = ("cls", "npy", "txt")
APART = "; members of one sample must stand together: write the archive sorted by name"


def read_webdataset(folder: Path, split: str, set_name: str) -> Data:
    """Open a set; shards are read when samples are.

    Raises:
        UserError: a file of the layout is missing or invalid; while reading samples: a shard or a label is damaged.
    """
    shards = _shards(folder / split)
    task = read_text(folder / TYPE).strip().lower() if (folder / TYPE).is_file() else "classification"
    where = f"{folder.name}/{split}"

    def samples() -> Iterator[EvaluationSample]:
        for shard in shards:
            yield from _read_tar(shard, task)

    if task == "retrieval":
        return RetrievalData(where, samples)
    if task not in ("classification", "multilabel"):
        raise UserError(f"{folder / TYPE} has {task!r}: write classification, multilabel or retrieval")
    prompts = class_prompts(folder, set_name)
    if prompts.classnames is None:
        raise UserError(class_prompts_missing(folder))
    return ClassificationData(
        where, samples, prompts.classnames, prompts.templates, prompts.source, multilabel=task == "multilabel"
    )


def _shards(folder: Path) -> list[Path]:
    file = folder / SHARDS
    text = read_text(file).strip()
    if not text.isdigit():
        raise UserError(f"{file} has {text!r}: write the number of .tar files")
    shards = [folder / f"{index}.tar" for index in range(int(text))]
    if not shards:
        raise UserError(f"{folder} has no samples: {SHARDS} has 0; name another split")
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise UserError(f"{folder} lacks {', '.join(missing[:5])} of its {len(shards)} shards: download them again")
    return shards


def _read_tar(shard: Path, task: str) -> Iterator[EvaluationSample]:
    """Read the samples of a shard: consecutive members with one key are a sample, as in webdataset."""
    parts: dict[str, bytes] = {}
    key = ""
    for name, extension, content in _members(shard):
        if name != key:
            if parts:
                yield _sample(shard, key, parts, task)
            key, parts = name, {}
        if extension in parts:
            raise UserError(f"{shard} has two members {key}.{extension}: give each sample a name of its own")
        if len(parts) >= MAX_SAMPLE_FILES:
            raise UserError(f"{shard}: more than {MAX_SAMPLE_FILES} members are named {key!r} up to the first dot")
        parts[extension] = content
    if parts:
        yield _sample(shard, key, parts, task)


def _members(shard: Path) -> Iterator[tuple[str, str, bytes]]:
    """Yield (name, extension, content) of a shard's members; what no sample uses has no content."""
    archive: Archive | None = None
    try:
        with shard.open("rb", buffering=0) as stream:
            archive = Archive(stream)
            for member in archive:
                name, extension = split_name(member.name)
                if not member.isreg() or not extension:
                    continue
                is_used = extension in (*IMAGES, *LABELS)
                most = MAX_TEXT_BYTES if extension in ("cls", "txt") else MAX_FILE_BYTES
                if is_used and member.size > most:
                    raise UserError(f"{shard}: {member.name!r} has {member.size:,} bytes, more than {most:,}")
                yield name, extension, archive.read(member) if is_used else b""
    except UserError:
        raise
    except BROKEN_ARCHIVE as error:
        count = archive.count if archive else 0
        raise UserError(
            f"{shard} is not a complete tar file: it is cut or damaged after {count} members ({error}); "
            "download it again"
        ) from None


def _sample(shard: Path, key: str, parts: dict[str, bytes], task: str) -> EvaluationSample:
    full_key = f"{shard.name}:{key}"
    image = next((parts[extension] for extension in IMAGES if extension in parts), None)
    if image is None:
        raise UserError(f"{shard}: sample {key} has no image ({', '.join(IMAGES)}) among {', '.join(parts)}{APART}")
    try:
        if task == "retrieval":
            return EvaluationSample(full_key, image, texts=tuple(parts["txt"].decode().splitlines()))
        # a pickle in a published set could run code
        array = np.load(io.BytesIO(parts["npy"]), allow_pickle=False) if "npy" in parts else None
        if task == "multilabel":
            if array is None:
                raise KeyError("npy")
            return EvaluationSample(full_key, image, array=array)
        return EvaluationSample(full_key, image, label=int(parts["cls"]), array=array)
    except KeyError as error:
        raise UserError(
            f"{shard}: sample {key} has no .{error.args[0]}, its labels, among {', '.join(parts)}{APART}"
        ) from None
    except (ValueError, EOFError) as error:
        raise UserError(f"{shard}: the labels of sample {key} cannot be read: {error}") from None
