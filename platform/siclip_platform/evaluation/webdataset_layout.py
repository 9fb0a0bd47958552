"""CLIP_benchmark's webdataset layout, in which DataComp publishes its sets.

FOLDER/SPLIT/nshards.txt, 0.tar, 1.tar …    members KEY.jpg (png, webp), KEY.cls, KEY.npy, KEY.txt
FOLDER/classnames.txt                       one name a line, in the order of the labels
FOLDER/zeroshot_classification_templates.txt    one a line, {c} for the name
FOLDER/dataset_type.txt                     classification (default), multilabel or retrieval
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from siclip.errors import UserError
from siclip_platform.evaluation.prompts import class_prompts, class_prompts_missing
from siclip_platform.evaluation.sets import ClassificationData, Data, EvaluationSample, RetrievalData

SHARDS = "nshards.txt"
TYPE = "dataset_type.txt"
IMAGES = ("webp", "png", "jpg", "jpeg")


def read_webdataset(folder: Path, split: str, set_name: str) -> Data:
    """
    Raises:
        UserError: a file of the layout is missing or says something else than it should.
    """
    shards = _shards(folder / split)
    kind = (folder / TYPE).read_text().strip().lower() if (folder / TYPE).is_file() else "classification"
    place = f"{folder.name}/{split}"

    def samples() -> Iterator[EvaluationSample]:
        for shard in shards:
            yield from _read_tar(shard, kind)

    if kind == "retrieval":
        return RetrievalData(place, samples)
    if kind not in ("classification", "multilabel"):
        raise UserError(f"{folder / TYPE} says {kind!r}: write classification, multilabel or retrieval")
    prompts = class_prompts(folder, set_name)
    if prompts.classnames is None:
        raise UserError(class_prompts_missing(folder))
    return ClassificationData(
        place, samples, prompts.classnames, prompts.templates, prompts.source, multilabel=kind == "multilabel"
    )


def _shards(folder: Path) -> list[Path]:
    file = folder / SHARDS
    text = file.read_text().strip()
    if not text.isdigit():
        raise UserError(f"{file} says {text!r}: it holds the number of .tar files")
    shards = [folder / f"{index}.tar" for index in range(int(text))]
    if not shards:
        raise UserError(f"{folder} has no samples: {SHARDS} says 0; name another split")
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise UserError(f"{folder} lacks {', '.join(missing[:5])} of its {len(shards)} shards: fetch them again")
    return shards


def _read_tar(shard: Path, kind: str) -> Iterator[EvaluationSample]:
    """Members that follow each other with one key are a sample, as webdataset reads them."""
    held: dict[str, bytes] = {}
    key = ""
    try:
        with tarfile.open(shard) as archive:
            for member in archive:
                if not member.isfile():
                    continue
                path = PurePosixPath(member.name)
                stem, _, extension = path.name.partition(".")
                if f"{path.parent / stem}" != key:
                    if held:
                        yield _sample(shard, key, held, kind)
                    key, held = f"{path.parent / stem}", {}
                content = archive.extractfile(member)
                held[extension.lower()] = content.read() if content else b""
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{shard} is not a whole tar file ({error}): fetch it again") from None
    if held:
        yield _sample(shard, key, held, kind)


def _sample(shard: Path, key: str, parts: dict[str, bytes], kind: str) -> EvaluationSample:
    place = f"{shard.name}:{key}"
    image = next((parts[extension] for extension in IMAGES if extension in parts), None)
    if image is None:
        raise UserError(f"{shard}: sample {key} has no image ({', '.join(IMAGES)}) among {', '.join(parts)}")
    try:
        if kind == "retrieval":
            return EvaluationSample(place, image, texts=tuple(parts["txt"].decode().splitlines()))
        array = np.load(io.BytesIO(parts["npy"]), allow_pickle=False) if "npy" in parts else None
        if kind == "multilabel":
            if array is None:
                raise KeyError("npy")
            return EvaluationSample(place, image, array=array)
        return EvaluationSample(place, image, label=int(parts["cls"]), array=array)
    except KeyError as error:
        raise UserError(
            f"{shard}: sample {key} has no .{error.args[0]}, its labels, among {', '.join(parts)}"
        ) from None
    except (ValueError, EOFError) as error:
        raise UserError(f"{shard}: the labels of sample {key} cannot be read: {error}") from None
