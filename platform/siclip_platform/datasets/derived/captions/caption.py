"""Synthetic captions of a dataset: a sidecar that a CoCa writes shard by shard on Ray Data."""

from __future__ import annotations

import importlib.metadata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from siclip.captioning.captioner import Pixels, Prepare
from siclip.data.images import decode_image
from siclip.data.transforms import fit_image
from siclip_platform.datasets.derived.actors import one_thread
from siclip_platform.datasets.derived.captions.captioners import open_captioner
from siclip_platform.datasets.derived.captions.clean import clean, without_near_equal
from siclip_platform.datasets.derived.captions.config import CaptionConfig, CleanRules
from siclip_platform.datasets.derived.embeddings.teacher import EmbeddingTeacher
from siclip_platform.datasets.derived.pipeline import Pipeline, Step
from siclip_platform.datasets.derived.shards import group_rows, readable
from siclip_platform.datasets.derived.sidecar_stage import (
    BuiltSidecar,
    Progress,
    ShardJob,
    build_sidecar,
    chosen_splits,
    shard_result,
)
from siclip_platform.datasets.derived.stage import Pool, Task, TaskOutput
from siclip_platform.datasets.manifest import open_dataset
from siclip_platform.datasets.schema import SYNTHETIC
from siclip_platform.datasets.sidecar import CAPTIONS_SCHEMA, sidecar_folder, write_sidecar_shard

VERSION = "2"  # increase it when the same recipe gives other captions
PART_ROWS = 500
"""Of a shard that pass through the steps together: 75 MB of pixels for a captioner of 224 px."""
JUDGED_TOGETHER = 64
COUNTS = ("images", "generated", "unusable", "near_equal", "dissimilar", "kept", "images_without")


def caption_dataset(
    folder: Path,
    name: str,
    config: CaptionConfig,
    *,
    splits: Sequence[str] = (),
    pool: Pool | None = None,
    progress: Progress | None = None,
) -> BuiltSidecar:
    """Write captions of a dataset. See `build_sidecar` for interrupted and repeated calls.

    The counts are: ``images``; texts ``generated``; of them dropped by a rule (``unusable``), as ``near_equal`` and
    as ``dissimilar``; ``kept``; and images without a kept caption (``images_without``).

    Args:
        folder: of the dataset.
        name: of the captions.
        config: model, sampling and filters.
        splits: to caption; default: all.
        pool: where the actors run; default: one actor.
        progress: called after every shard.

    Raises:
        UserError: the dataset, the model or the teacher cannot be opened, or the folder contains other captions.
    """
    dataset = open_dataset(folder)
    sidecar_folder(dataset.local_folder, "captions", name)
    chosen = chosen_splits(dataset, splits)
    pool = pool or Pool(actors=1)
    config = config.on(pool.gpus > 0)
    captioner = open_captioner(config)
    recipe: dict[str, Any] = {
        "model": {"name": captioner.name, "hash": captioner.hash},
        "config": _without_paths(config),
        "device": "cuda" if pool.gpus else "cpu",
        "libraries": {name: importlib.metadata.version(name) for name in ("torch", "open_clip_torch", "pyarrow")},
    }
    # The actors load their own copy; this one was only needed for its name and hash.
    prepare = captioner.prepare
    del captioner
    judged = 0
    if config.similarity:
        teacher = EmbeddingTeacher(config.similarity.teacher)
        recipe["teacher"], judged = teacher.identity, teacher.size[0]
        del teacher
    gpu, actors = pool.gpus > 0, max(pool.actors, 1)
    # Two models share a GPU by halves that cannot be two of a kind.
    shares = (0.7 * pool.gpus, 0.3 * pool.gpus) if judged else (pool.gpus, 0.0)
    settings = config.model_dump_json()
    steps = [
        Step(Decode, (str(dataset.local_folder), prepare, judged)),
        Step(Generate, (settings, gpu), actors, shares[0]),
        Step(Clean, (settings,)),
    ]
    if judged:
        steps.append(Step(Judge, (settings, gpu), actors, shares[1]))
    work = Pipeline(
        partial(row_groups_of, dataset.local_folder), steps, partial(write_captions, recipe["model"]["name"])
    )
    return build_sidecar(dataset, "captions", name, VERSION, recipe, chosen, work, pool, progress)


@dataclass
class CaptionPart:
    """Consecutive row groups of a shard on their way to captions.

    Attributes:
        shard: path relative to the dataset.
        groups: numbers of the row groups.
        rows: of each row group.
        ids: of the samples.
        earlier: the dataset's own captions of each sample.
        images: as the captioner needs them, until it has seen them.
        judged: the images as the similarity filter needs them.
        texts: of each sample.
        counts: by name, see `caption_dataset`.
    """

    shard: str
    groups: list[int]
    rows: list[int] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    earlier: list[list[str]] = field(default_factory=list)
    images: list[Pixels] = field(default_factory=list)
    judged: list[Pixels] = field(default_factory=list)
    texts: list[list[str]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


def row_groups_of(folder: Path, task: Task) -> list[CaptionPart]:
    """Return the parts of a shard: row groups in order, as many as have at most `PART_ROWS` rows together.

    Raises:
        UserError: the shard cannot be read.
    """
    job = ShardJob.model_validate(task.payload)
    sizes = group_rows(folder / job.path)
    parts: list[CaptionPart] = []
    for index, size in enumerate(sizes):
        if not parts or sum(sizes[group] for group in parts[-1].groups) + size > PART_ROWS:
            parts.append(CaptionPart(job.path, []))
        parts[-1].groups.append(index)
    return parts


class Decode:
    """Step on a CPU: reads row groups, decodes their images and prepares them for the captioner.

    Args:
        folder: of the dataset.
        prepare: of the captioner.
        judged: side of the images for the similarity filter; 0: there is none.
    """

    def __init__(self, folder: str, prepare: Prepare, judged: int) -> None:
        self.folder, self.prepare, self.judged = Path(folder), prepare, judged

    def __call__(self, part: CaptionPart) -> CaptionPart:
        path = self.folder / part.shard
        with readable(path) as file:
            tables = [file.read_row_group(group, columns=["id", "image", "captions"]) for group in part.groups]
        part.rows = [table.num_rows for table in tables]
        for row in (row for table in tables for row in table.to_pylist()):
            self.add(part, row, f"{path}: sample {row['id']}")
        return part

    def add(self, part: CaptionPart, row: dict[str, Any], where: str) -> None:
        """Add a row of the dataset; ``where`` names it if its image cannot be decoded."""
        image = decode_image(row["image"], where)
        part.ids.append(row["id"])
        part.earlier.append([caption["text"] for caption in row["captions"]])
        part.images.append(self.prepare(image))
        if self.judged:
            part.judged.append(fit_image(image, self.judged))


class Generate:
    """Step of an actor that holds the captioner."""

    def __init__(self, config: str, gpu: bool) -> None:
        self.config = CaptionConfig.model_validate_json(config)
        self.captioner = open_captioner(self.config, gpu)

    def __call__(self, part: CaptionPart) -> CaptionPart:
        # Equal bytes on every worker: see `one_thread`.
        with one_thread():
            part.texts = self.captioner.captions(part.images, part.ids, self.config.per_image)
        part.images = []
        return part


class Clean:
    """Step on a CPU: cleans the texts and drops near-equal ones."""

    def __init__(self, config: str) -> None:
        self.rules = CaptionConfig.model_validate_json(config).rules

    def __call__(self, part: CaptionPart) -> CaptionPart:
        pairs = zip(part.texts, part.earlier, strict=True)
        part.texts = [usable(new, earlier, self.rules, part.counts) for new, earlier in pairs]
        return part


class Judge:
    """Step of an actor that holds the teacher of the similarity filter: drops captions unlike their image."""

    def __init__(self, config: str, gpu: bool) -> None:
        similarity = CaptionConfig.model_validate_json(config).similarity
        assert similarity is not None
        self.teacher, self.minimum = EmbeddingTeacher(similarity.teacher, gpu=gpu), similarity.min_similarity

    def __call__(self, part: CaptionPart) -> CaptionPart:
        with one_thread():
            for first in range(0, len(part.texts), JUDGED_TOGETHER):
                stop = first + JUDGED_TOGETHER
                part.texts[first:stop] = self.keep(part.judged[first:stop], part.texts[first:stop], part.counts)
        part.judged = []
        return part

    def keep(self, images: Sequence[Pixels], texts: Sequence[Sequence[str]], counts: Counter[str]) -> list[list[str]]:
        """Of each image the texts whose cosine with it is the minimum or more; it is seen as for evaluation."""
        flat = [text for some in texts for text in some]
        if not flat:
            return [[] for _ in texts]
        image = self.teacher.images(np.stack(images))
        owner = np.repeat(np.arange(len(texts)), [len(some) for some in texts])
        cosines = (image[owner] * self.teacher.texts(flat)).sum(dim=1).tolist()
        kept: list[list[str]] = [[] for _ in texts]
        for text, index, cosine in zip(flat, owner, cosines, strict=True):
            if cosine >= self.minimum:
                kept[index].append(text)
            else:
                counts["dissimilar"] += 1
        return kept


def write_captions(model: str, folder: Path, task: Task, parts: Sequence[CaptionPart]) -> TaskOutput:
    """Write the captions of a shard, with the row groups of the shard."""
    job = ShardJob.model_validate(task.payload)
    counts: Counter[str] = Counter(dict.fromkeys(COUNTS, 0))
    tables = []
    for part in parts:
        counts.update(part.counts)
        counts["images"] += len(part.texts)
        counts["kept"] += sum(map(len, part.texts))
        counts["images_without"] += sum(not some for some in part.texts)
        texts = iter(part.texts)
        for size in part.rows:
            captions = [
                [{"text": text, "source": SYNTHETIC, "model": model} for text in next(texts)] for _ in range(size)
            ]
            tables.append(pa.Table.from_pylist([{"captions": some} for some in captions], CAPTIONS_SCHEMA))
    entry = write_sidecar_shard(folder / job.path, tables, CAPTIONS_SCHEMA)
    return TaskOutput(files=(job.path,), result=shard_result(entry, counts))


def usable(generated: Sequence[str], earlier: Sequence[str], rules: CleanRules, counts: Counter[str]) -> list[str]:
    """Return the captions that pass cleaning and are not near-equal to each other or to ``earlier`` ones."""
    cleaned = [text for text in (clean(text, rules) for text in generated) if text is not None]
    kept = without_near_equal(cleaned, earlier, rules.near_equal)
    counts["generated"] += len(generated)
    counts["unusable"] += len(generated) - len(cleaned)
    counts["near_equal"] += len(cleaned) - len(kept)
    return kept


def _without_paths(config: CaptionConfig) -> dict[str, Any]:
    """Return the settings without paths of files; the recipe has the hashes of those files instead."""
    tree = config.model_dump(mode="json", exclude={"model", "pretrained"})
    if config.similarity:
        tree["similarity"] = {"min_similarity": config.similarity.min_similarity}
    return tree
