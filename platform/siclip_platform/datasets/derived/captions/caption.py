"""Synthetic captions of a dataset: a sidecar that a CoCa writes shard by shard on Ray Data."""

from __future__ import annotations

import importlib.metadata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from siclip.data.images import decode_image
from siclip.data.transforms import fit_image
from siclip_platform.datasets.derived.actors import one_thread
from siclip_platform.datasets.derived.captions.captioners import open_captioner
from siclip_platform.datasets.derived.captions.clean import clean, without_near_equal
from siclip_platform.datasets.derived.captions.config import CaptionConfig, CleanRules, SimilarityFilter
from siclip_platform.datasets.derived.embeddings.teacher import EmbeddingTeacher
from siclip_platform.datasets.derived.sidecar_stage import (
    BuiltSidecar,
    Progress,
    ShardJob,
    build_sidecar,
    chosen_splits,
    row_groups,
    shard_result,
)
from siclip_platform.datasets.derived.stage import Pool, Task, TaskOutput
from siclip_platform.datasets.manifest import open_dataset
from siclip_platform.datasets.schema import SYNTHETIC
from siclip_platform.datasets.sidecar import CAPTIONS_SCHEMA, sidecar_folder, write_sidecar_shard

VERSION = "2"  # increase it when the same recipe gives other captions
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
    del captioner
    if config.similarity:
        recipe["teacher"] = EmbeddingTeacher(config.similarity.teacher).identity
    arguments = (str(dataset.local_folder), config.model_dump_json(), pool.gpus > 0)
    pool = Pool(cpus=pool.cpus, gpus=pool.gpus, actors=max(pool.actors, 1), arguments=arguments, here=pool.here)
    return build_sidecar(dataset, "captions", name, VERSION, recipe, chosen, CaptionShard, pool, progress)


class CaptionShard:
    """An actor that holds the models; each task captions a shard."""

    def __init__(self, folder: str, config: str, gpu: bool) -> None:
        self.folder = Path(folder)
        self.config = CaptionConfig.model_validate_json(config)
        self.captioner = open_captioner(self.config, gpu)
        self.judge = Judge(self.config.similarity, gpu) if self.config.similarity else None

    def __call__(self, folder: Path, task: Task) -> TaskOutput:
        job = ShardJob.model_validate(task.payload)
        counts: Counter[str] = Counter(dict.fromkeys(COUNTS, 0))
        path = folder / job.path
        # Equal bytes on every worker: see `one_thread`.
        with one_thread():
            entry = write_sidecar_shard(path, self._tables(self.folder / job.path, counts), CAPTIONS_SCHEMA)
        return TaskOutput(files=(job.path,), result=shard_result(entry, counts))

    def _tables(self, shard: Path, counts: Counter[str]) -> Iterator[pa.Table]:
        for table in row_groups(shard, ("id", "image", "captions")):
            rows = table.to_pylist()
            size = len(rows)
            batches = (rows[first : first + size] for first in range(0, len(rows), size))
            kept = [captions for batch in batches for captions in self._batch(batch, counts)]
            yield pa.Table.from_pylist([{"captions": captions} for captions in kept], CAPTIONS_SCHEMA)

    def _batch(self, rows: list[dict[str, Any]], counts: Counter[str]) -> list[list[dict[str, str]]]:
        images = [decode_image(row["image"], f"sample {row['id']}") for row in rows]
        prepared = [self.captioner.prepare(image) for image in images]
        generated = self.captioner.captions(prepared, [row["id"] for row in rows], self.config.per_image)
        rules = self.config.rules
        texts = [
            usable(new, [caption["text"] for caption in row["captions"]], rules, counts)
            for new, row in zip(generated, rows, strict=True)
        ]
        if self.judge:
            texts = self.judge.keep(images, texts, counts)
        counts["images"] += len(rows)
        counts["kept"] += sum(map(len, texts))
        counts["images_without"] += sum(not some for some in texts)
        model = self.captioner.name
        return [[{"text": text, "source": SYNTHETIC, "model": model} for text in some] for some in texts]


class Judge:
    """The similarity filter: drops captions that the teacher finds unlike their image."""

    def __init__(self, config: SimilarityFilter, gpu: bool) -> None:
        self.teacher = EmbeddingTeacher(config.teacher, gpu=gpu)
        self.minimum = config.min_similarity

    def keep(
        self, images: Sequence[np.ndarray], texts: Sequence[Sequence[str]], counts: Counter[str]
    ) -> list[list[str]]:
        """Of each image the texts whose cosine with it is the minimum or more; it is seen as for evaluation."""
        flat = [text for some in texts for text in some]
        if not flat:
            return [[] for _ in texts]
        size = self.teacher.size[0]
        image = self.teacher.images(np.stack([fit_image(pixels, size) for pixels in images]))
        owner = np.repeat(np.arange(len(texts)), [len(some) for some in texts])
        cosines = (image[owner] * self.teacher.texts(flat)).sum(dim=1).tolist()
        kept: list[list[str]] = [[] for _ in texts]
        for text, index, cosine in zip(flat, owner, cosines, strict=True):
            if cosine >= self.minimum:
                kept[index].append(text)
            else:
                counts["dissimilar"] += 1
        return kept


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
