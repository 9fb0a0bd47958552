"""The stages before the training, each a function that runs in a process of its own (see `worker`)."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from siclip.config import Config
from siclip.errors import UserError
from siclip_platform.datasets.derived.captions.caption import caption_dataset
from siclip_platform.datasets.derived.captions.captioners import check_captioner
from siclip_platform.datasets.derived.captions.config import CaptionConfig
from siclip_platform.datasets.derived.embeddings.config import EmbedConfig
from siclip_platform.datasets.derived.embeddings.embed import embed_dataset, plan_embedding
from siclip_platform.datasets.derived.embeddings.teacher import load_teacher
from siclip_platform.datasets.derived.sidecar_stage import BuiltSidecar
from siclip_platform.datasets.derived.stage import Pool
from siclip_platform.datasets.importing.ingest import import_dataset
from siclip_platform.datasets.importing.parts import VALIDATION
from siclip_platform.datasets.manifest import open_dataset
from siclip_platform.recipes.recipe import Recipe
from siclip_platform.recipes.student import recipe_model
from siclip_platform.rehearsal.job import Rehearsal
from siclip_platform.training.build import build_trainer, check

HERE = Pool(here=True)


class Measured(Config):
    """What a stage's process leaves behind.

    Attributes:
        rows: that it worked on.
        kept: of them, those that the dataset has; only of the import.
        rows_per_second: after the first ones, so that starting and loading do not count; 0: nothing to extrapolate.
        workers: that the whole job runs at the same time.
        gpu_bytes: peak of the GPU memory that torch reserved; 0 without a GPU.
        note: for people.
    """

    rows: int = 0
    kept: int = 0
    rows_per_second: float = 0
    workers: int = 1
    gpu_bytes: int = 0
    note: str = ""


def caption_config(job: Rehearsal) -> CaptionConfig:
    """How captions are written."""
    return CaptionConfig(model=job.captioner, pretrained=job.pretrained, per_image=job.per_image)


def check_recipe(job: Rehearsal) -> Measured:
    """Open every teacher with the code that the training uses, and build the recipe's model from it.

    Raises:
        UserError: a teacher is missing or cannot be read, or the recipe's parts do not fit each other.
    """
    recipe = job.recipe
    if job.needs_teacher and not (recipe.teacher or (recipe.distil_from and not recipe.model.inherit)):
        raise UserError(
            f"{recipe.model.name} inherits or is distilled from a teacher, and the recipe names none: add --set "
            "teacher=FILE or teacher=open_clip:NAME:TAG"
        )
    if set(recipe.data.captions) - {job.beside} and not job.given_captions:
        check_captioner(caption_config(job))
    if not recipe.data.teacher_embeddings:
        check(recipe, with_data=False)
        return Measured(note=f"teacher {recipe.teacher}" if recipe.teacher else "")
    # the embeddings do not exist yet: the model is built as without them
    trained = recipe.updated({"data.teacher_embeddings": None, "distil_from": []})
    if recipe.teacher:
        build_trainer(trained)
    if recipe.data.teacher_embeddings == job.beside:
        return Measured(note="embeddings of the source")
    teacher = load_teacher(embedded_by(recipe))
    return Measured(note=f"embeddings of {teacher.identity}")


def embedded_by(recipe: Recipe) -> str:
    """The teacher whose embeddings a recipe reads.

    Raises:
        UserError: it names none.
    """
    name = recipe.distil_from[0] if recipe.distil_from else recipe.teacher
    if name is None:
        raise UserError(
            f"the recipe reads the embeddings {recipe.data.teacher_embeddings!r} and names no teacher: add --set "
            "teacher=FILE"
        )
    return name


def import_rows(job: Rehearsal) -> Measured:
    """Import the sample.

    Raises:
        UserError: too many rows are bad, or a split is empty.
    """
    started = time.perf_counter()
    done = import_dataset(job.sample, job.dataset, job.importing, max_bad_share=job.max_bad_share, pool=HERE)
    seconds = time.perf_counter() - started
    rows = {split: done.dataset.rows(split) for split in done.dataset.split_names}
    for split in ("train", VALIDATION):
        if not rows.get(split):
            raise UserError(
                f"none of the {done.read} rows that were read is in the split {split!r}: raise --rows, draw a split "
                "with --validation-share, or tell files apart with --split NAME=GLOB"
            )
    bad = sum(done.rejected.values())
    reasons = ", ".join(f"{count} {reason}" for reason, count in done.rejected.items())
    return Measured(
        rows=done.read,
        kept=done.read - bad,
        rows_per_second=done.read / seconds,
        workers=os.cpu_count() or 1,
        note=", ".join(f"{count} {split}" for split, count in rows.items())
        + (f"; rejected: {reasons}" if bad else ""),
    )


def write_captions(job: Rehearsal, name: str) -> Measured:
    """Write one of the caption sets that the recipe reads.

    Raises:
        UserError: the captioner cannot be loaded, or no caption was kept.
    """
    config = caption_config(job)
    clock = _Clock(job)
    built = caption_dataset(job.dataset, name, config, pool=_pool(job), progress=clock.tick)
    kept, images = built.counts["kept"], built.counts["images"]
    if not kept:
        raise UserError(
            f"none of the {built.counts['generated']} captions of {images} images was kept: see data caption"
        )
    return clock.measured(
        built, f"{kept / images:.1f} captions per image, {built.counts['images_without']} images without"
    )


def write_embeddings(job: Rehearsal, name: str) -> Measured:
    """Write the embeddings that the recipe reads, of its own and its synthetic captions.

    Raises:
        UserError: the teacher cannot be loaded.
    """
    recipe = job.recipe
    config = EmbedConfig(
        teacher=embedded_by(recipe),
        augmentations=job.augmentations,
        image_size=recipe_model(recipe).image.image_size,
        captions=recipe.data.captions,
    )
    clock = _Clock(job)
    plan = plan_embedding(job.dataset, name, config)
    built = embed_dataset(plan, pool=_pool(job), progress=clock.tick)
    size = sum(plan.bytes.values()) / built.counts["images"]
    return clock.measured(built, f"{size / 1000:.1f} kB per image")


class _Clock:
    """Notes when each shard was finished; the first one includes the loading of the model."""

    def __init__(self, job: Rehearsal) -> None:
        dataset = open_dataset(job.dataset)
        self.job = job
        self.rows = [entry.rows for split in dataset.split_names for entry in dataset.entries(split)]
        self.started = time.perf_counter()
        self.ends: list[float] = []

    def tick(self, done: int, total: int, rows: int) -> None:
        self.ends.append(time.perf_counter())

    def measured(self, built: BuiltSidecar, note: str) -> Measured:
        return Measured(
            rows=sum(self.rows),
            rows_per_second=rate(self.rows, self.started, self.ends),
            gpu_bytes=_reserved() if self.job.on_gpu else 0,
            note=note,
        )


def rate(rows: Sequence[int], started: float, ends: Sequence[float]) -> float:
    """Rows per second after the first shard, or of it if it is the only one.

    Args:
        rows: of each shard.
        started: when the first one was begun, in seconds.
        ends: when each was finished.
    """
    if len(ends) < 2:
        return rows[0] / (ends[0] - started)
    return sum(rows[1:]) / (ends[-1] - ends[0])


def _pool(job: Rehearsal) -> Pool:
    return Pool(gpus=1.0 if job.on_gpu else 0.0, actors=1, here=True)


def _reserved() -> int:
    import torch

    return int(torch.cuda.max_memory_reserved())
