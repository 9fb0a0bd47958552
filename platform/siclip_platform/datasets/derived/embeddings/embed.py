"""Teacher embeddings of a dataset: a sidecar that a teacher writes shard by shard on Ray Data.

Shapes: N rows of a row group, K augmentations, D the teacher's widths.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from siclip.data.crops import replay_crop, seeded_boxes
from siclip.data.images import decode_image
from siclip_platform.datasets.derived.actors import one_thread
from siclip_platform.datasets.derived.embeddings.budget import check_budget, expected_bytes, extent
from siclip_platform.datasets.derived.embeddings.config import EmbedConfig
from siclip_platform.datasets.derived.embeddings.layout import EmbeddingLayout, UsedCaptions, embedding_table
from siclip_platform.datasets.derived.embeddings.teacher import EmbeddingTeacher
from siclip_platform.datasets.derived.sidecar_stage import (
    BuiltSidecar,
    Progress,
    ShardJob,
    build_sidecar,
    check_free_space,
    chosen_splits,
    row_groups,
    shard_result,
)
from siclip_platform.datasets.derived.stage import Pool, Task, TaskOutput
from siclip_platform.datasets.manifest import Dataset, open_dataset
from siclip_platform.datasets.sidecar import Sidecar, open_sidecar, sidecar_folder, write_sidecar_shard

VERSION = "1"  # increase it when the same recipe gives other embeddings


@dataclass(frozen=True)
class Plan:
    """Embeddings to be built.

    Attributes:
        dataset: to embed.
        name: of the embeddings.
        config: settings.
        splits: to embed.
        layout: of the columns.
        bytes: part → bytes on disk.
    """

    dataset: Dataset
    name: str
    config: EmbedConfig
    splits: list[str]
    layout: EmbeddingLayout
    bytes: dict[str, float]

    @property
    def folder(self) -> Path:
        return sidecar_folder(self.dataset.local_folder, "embeddings", self.name)

    def check(self, disk_budget: int | None) -> None:
        """Check that the embeddings fit into the budget and on the disk.

        Raises:
            UserError: they do not; the message states the sizes.
        """
        check_budget(self.bytes, disk_budget)
        check_free_space(self.folder, int(sum(self.bytes.values())))


def plan_embedding(folder: Path, name: str, config: EmbedConfig, splits: Sequence[str] = ()) -> Plan:
    """Open the dataset, the captions beside it and the teacher, and compute the size of the embeddings.

    Raises:
        UserError: one of them cannot be opened.
    """
    dataset = open_dataset(folder)
    sidecar_folder(dataset.local_folder, "embeddings", name)
    chosen = chosen_splits(dataset, splits)
    sidecars = [open_sidecar(dataset, "captions", each) for each in config.captions]
    what = extent(dataset, chosen, sidecars)
    teacher = EmbeddingTeacher(config.teacher, image_size=config.image_size, precision=config.precision)
    layout = EmbeddingLayout(
        teacher=teacher.identity,
        key=_key(teacher, config),
        widths=teacher.widths,
        logit_scale=teacher.logit_scale,
        numbers=config.numbers,
        augmentations=config.augmentations,
        image_size=teacher.size,
        captions=tuple(UsedCaptions(name=sidecar.manifest.name, hash=sidecar.hash) for sidecar in sidecars),
    )
    return Plan(dataset, name, config, chosen, layout, expected_bytes(layout, what))


def embed_dataset(plan: Plan, *, pool: Pool | None = None, progress: Progress | None = None) -> BuiltSidecar:
    """Build planned embeddings; the counts are ``images`` and ``captions``.

    See `build_sidecar` for interrupted and repeated calls.
    """
    config, pool = plan.config, pool or Pool(actors=1)
    recipe = {
        "layout": plan.layout.model_dump(mode="json"),
        "config": config.model_dump(mode="json", exclude={"teacher", "captions"}),
        "captions": list(config.captions),
        "device": "cuda" if pool.gpus else "cpu",
        "libraries": {name: importlib.metadata.version(name) for name in ("torch", "pillow", "pyarrow")},
    }
    folder = str(plan.dataset.local_folder)
    arguments = (folder, config.model_dump_json(), plan.layout.model_dump_json(), pool.gpus > 0)
    pool = Pool(cpus=pool.cpus, gpus=pool.gpus, actors=max(pool.actors, 1), arguments=arguments, here=pool.here)
    return build_sidecar(
        plan.dataset, "embeddings", plan.name, VERSION, recipe, plan.splits, EmbedShard, pool, progress
    )


class EmbedShard:
    """An actor that holds the teacher; each task embeds a shard."""

    def __init__(self, folder: str, config: str, layout: str, gpu: bool) -> None:
        self.folder = Path(folder)
        self.config = EmbedConfig.model_validate_json(config)
        self.layout = EmbeddingLayout.model_validate_json(layout)
        self.teacher = EmbeddingTeacher(
            self.config.teacher, image_size=self.config.image_size, precision=self.config.precision, gpu=gpu
        )
        dataset = open_dataset(self.folder)
        self.captions: list[Sidecar] = [open_sidecar(dataset, "captions", name) for name in self.config.captions]

    def __call__(self, folder: Path, task: Task) -> TaskOutput:
        job = ShardJob.model_validate(task.payload)
        counts = {"images": 0, "captions": 0}
        with one_thread():
            entry = write_sidecar_shard(folder / job.path, self._tables(job, counts), self.layout.schema)
        return TaskOutput(files=(job.path,), result=shard_result(entry, counts))

    def _tables(self, job: ShardJob, counts: dict[str, int]) -> Iterator[pa.Table]:
        for index, table in enumerate(row_groups(self.folder / job.path, ("id", "image", "captions"))):
            # Row groups are aligned, so group i of a sidecar has the captions of group i of the shard.
            beside = [sidecar.read(job.split, job.number, index) for sidecar in self.captions]
            columns = [each["captions"].to_pylist() for each in (table, *beside)]
            texts = [[caption["text"] for caption in chain(*row)] for row in zip(*columns, strict=True)]
            counts["images"] += table.num_rows
            counts["captions"] += sum(map(len, texts))
            yield self._table(table, texts)

    def _table(self, table: pa.Table, texts: list[list[str]]) -> pa.Table:
        """Embed one row group; its crops are decoded batch by batch, to bound the memory."""
        boxes = np.empty((table.num_rows, self.config.augmentations, 4), dtype=np.int32)
        # A row group may be empty; torch.cat needs at least one tensor.
        image = [torch.empty(0, self.layout.widths[0])]
        size = max(1, self.config.batch_size // self.config.augmentations)
        for first in range(0, table.num_rows, size):
            some = table.slice(first, size).select(["id", "image"]).to_pylist()
            crops = [self._crops(row, boxes[first + index]) for index, row in enumerate(some)]
            image.append(self.teacher.images(np.concatenate(crops)))
        flat = [text for some in texts for text in some]
        text = [torch.empty(0, self.layout.widths[1])]
        text += [
            self.teacher.texts(flat[first : first + self.config.batch_size])
            for first in range(0, len(flat), self.config.batch_size)
        ]
        return embedding_table(self.layout, torch.cat(image), boxes, torch.cat(text), [len(some) for some in texts])

    def _crops(self, row: dict[str, Any], boxes: np.ndarray) -> np.ndarray:
        """Return the crops (K, height, width, 3) of a row and write their boxes to ``boxes`` (K, 4)."""
        pixels = decode_image(row["image"], f"sample {row['id']!s}")
        config = self.config
        height, width = pixels.shape[:2]
        boxes[:] = seeded_boxes(height, width, len(boxes), config.crop_scale, config.seed, row["id"])
        return np.stack([replay_crop(pixels, box, self.layout.image_size) for box in boxes])


def _key(teacher: EmbeddingTeacher, config: EmbedConfig) -> str:
    """Return a hash of the teacher's weights and of the preprocessing of its inputs."""
    inputs = f"crop, bilinear to {teacher.size}; {teacher.context_length} CLIP tokens; {config.precision}"
    return hashlib.sha256(f"{teacher.identity}|{inputs}".encode()).hexdigest()[:16]
