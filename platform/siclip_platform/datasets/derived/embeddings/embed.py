"""Teacher embeddings of a dataset: a sidecar that a teacher writes shard by shard on Ray Data."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from siclip_platform.datasets.derived.embeddings.budget import check_budget, expected_bytes, extent
from siclip_platform.datasets.derived.embeddings.config import EmbedConfig
from siclip_platform.datasets.derived.embeddings.layout import EmbeddingLayout, UsedCaptions
from siclip_platform.datasets.derived.embeddings.steps import (
    Crop,
    Encode,
    Quantize,
    part_rows,
    parts_of,
    write_embeddings,
)
from siclip_platform.datasets.derived.embeddings.teacher import EmbeddingTeacher
from siclip_platform.datasets.derived.pipeline import Pipeline, Step
from siclip_platform.datasets.derived.sidecar_stage import (
    BuiltSidecar,
    Progress,
    build_sidecar,
    check_free_space,
    chosen_splits,
)
from siclip_platform.datasets.derived.stage import Pool
from siclip_platform.datasets.manifest import Dataset, open_dataset
from siclip_platform.datasets.sidecar import open_sidecar, sidecar_folder

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
        context_length: of the teacher, in tokens.
        bytes: part → bytes on disk.
    """

    dataset: Dataset
    name: str
    config: EmbedConfig
    splits: list[str]
    layout: EmbeddingLayout
    context_length: int
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
    return Plan(dataset, name, config, chosen, layout, teacher.context_length, expected_bytes(layout, what))


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
    folder, settings, size = plan.dataset.local_folder, config.model_dump_json(), plan.layout.image_size
    steps = [
        Step(Crop, (str(folder), settings, size, plan.context_length)),
        Step(Encode, (settings, pool.gpus > 0), max(pool.actors, 1), pool.gpus),
        Step(Quantize, (plan.layout.model_dump_json(),)),
    ]
    parts = partial(parts_of, folder, part_rows(config, size))
    work = Pipeline(parts, steps, partial(write_embeddings, plan.layout))
    return build_sidecar(plan.dataset, "embeddings", plan.name, VERSION, recipe, plan.splits, work, pool, progress)


def _key(teacher: EmbeddingTeacher, config: EmbedConfig) -> str:
    """Return a hash of the teacher's weights and of the preprocessing of its inputs."""
    inputs = f"crop, bilinear to {teacher.size}; {teacher.context_length} CLIP tokens; {config.precision}"
    return hashlib.sha256(f"{teacher.identity}|{inputs}".encode()).hexdigest()[:16]
