"""Making a sidecar: a task for each shard of a dataset, and the manifest last."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from siclip.config import Config
from siclip.errors import UserError
from siclip_platform.datasets.derived.stage import PLAN, Pool, Record, Task, clear_stage, run_stage
from siclip_platform.datasets.manifest import MANIFEST, Dataset, ShardEntry
from siclip_platform.datasets.sidecar import (
    Sidecar,
    SidecarKind,
    SidecarManifest,
    open_sidecar,
    sidecar_folder,
    write_sidecar_manifest,
)
from siclip_platform.storage.locking import locked

Progress = Callable[[int, int], None]
"""(shards done, all shards)"""


class ShardJob(Config):
    """The payload of a task: one shard of the dataset."""

    split: str
    number: int = Field(ge=0, description="of the shard in its split")
    path: str
    sha256: str


@dataclass(frozen=True)
class Made:
    """A finished sidecar and its tasks' results, summed."""

    sidecar: Sidecar
    counts: dict[str, int]


def chosen_splits(dataset: Dataset, splits: Sequence[str]) -> list[str]:
    """The splits that are named, or all.

    Raises:
        UserError: there is no such split.
    """
    for split in splits:
        dataset.entries(split)
    return [split for split in dataset.split_names if not splits or split in splits]


def make_sidecar(
    dataset: Dataset,
    kind: SidecarKind,
    name: str,
    version: str,
    recipe: Mapping[str, Any],
    splits: Sequence[str],
    work: type,
    pool: Pool,
    progress: Progress | None = None,
) -> Made:
    """Run ``work`` on every shard; Ray must be initialised unless the pool is ``here``.

    Killed and called again with the same recipe it goes on, and the sidecar is the same to the byte. A finished one
    is returned as it is. A task's result holds the shard's ``entry`` and ``counts``, numbers that are summed.

    Raises:
        UserError: the folder holds a sidecar with another recipe, or it cannot be written.
    """
    folder = sidecar_folder(dataset.local_folder, kind, name)
    none: dict[str, list[ShardEntry]] = {split: [] for split in splits}
    wanted = SidecarManifest(
        kind=kind, name=name, version=version, dataset=dataset.hash, recipe=dict(recipe), splits=none
    )
    try:
        folder.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder.parent}: {error}") from None
    with locked(folder.parent / f".{name}.lock"):
        if not (folder / MANIFEST).exists():
            _run(dataset, folder, wanted, work, pool, progress)
        made = _existing(dataset, kind, wanted)
        if (folder / PLAN).exists():
            clear_stage(folder)
    return made


def remaining_bytes(folder: Path, total: int) -> int:
    """Of ``total`` bytes, those that an unfinished sidecar in ``folder`` has not written yet."""
    return max(0, total - sum(path.stat().st_size for path in folder.glob("*.parquet")))


def check_free_space(folder: Path, total: int) -> None:
    """Refuse what the disk cannot hold; ``folder`` need not be there yet.

    Raises:
        UserError: with the figures.
    """
    place = next(path for path in (folder, *folder.parents) if path.exists())
    free, missing = shutil.disk_usage(place).free, remaining_bytes(folder, total)
    if missing > free:
        raise UserError(
            f"{missing / 1e9:.2f} GB are still to be written to {folder} and its disk has {free / 1e9:.2f} GB free: "
            "make room, or take fewer augmentations, fewer captions or int8"
        )


def row_groups(path: Path, columns: Sequence[str]) -> Iterator[pa.Table]:
    """The row groups of a Parquet file, one after the other."""
    with pq.ParquetFile(path) as file:
        for index in range(file.num_row_groups):
            yield file.read_row_group(index, columns=list(columns))


def shard_result(entry: ShardEntry, counts: Mapping[str, int]) -> dict[str, Any]:
    """A task's result."""
    return {"entry": entry.model_dump(), "counts": dict(counts)}


def _run(
    dataset: Dataset, folder: Path, wanted: SidecarManifest, work: type, pool: Pool, progress: Progress | None
) -> None:
    jobs = [
        ShardJob(split=split, number=number, path=entry.path, sha256=entry.sha256)
        for split in wanted.splits
        for number, entry in enumerate(dataset.entries(split))
    ]
    tasks = [Task(name=f"{place:05d}", payload=job.model_dump(mode="json")) for place, job in enumerate(jobs)]
    done: list[str] = []

    def take(record: Record) -> None:
        done.append(record.task)
        if progress is not None:
            progress(len(done), len(tasks))

    plan = wanted.model_dump(mode="json")
    records = run_stage(folder, plan, tasks, work, pool=pool, on_record=take)
    splits: dict[str, list[ShardEntry]] = {split: [] for split in wanted.splits}
    for job, record in zip(jobs, records, strict=True):
        splits[job.split].append(ShardEntry.model_validate(record.result["entry"]))
    counts = _summed(record.result["counts"] for record in records)
    recipe = {**wanted.recipe, "counts": counts}
    write_sidecar_manifest(folder, wanted.model_copy(update={"splits": splits, "recipe": recipe}))


def _existing(dataset: Dataset, kind: SidecarKind, wanted: SidecarManifest) -> Made:
    sidecar = open_sidecar(dataset, kind, wanted.name)
    found = sidecar.manifest
    recipe = {key: value for key, value in found.recipe.items() if key != "counts"}
    keys = sorted(recipe.keys() | wanted.recipe.keys())
    differing = [key for key in keys if recipe.get(key) != wanted.recipe.get(key)]
    if found.version != wanted.version:
        differing.append("version")
    if list(found.splits) != list(wanted.splits):
        differing.append("splits")
    if differing:
        raise UserError(
            f"{sidecar.folder} holds {kind} that differ in {', '.join(differing)}: choose another --name, or delete "
            "that folder"
        )
    return Made(sidecar, dict(found.recipe["counts"]))


def _summed(each: Iterator[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for counts in each:
        for key, value in counts.items():
            total[key] = total.get(key, 0) + value
    return total
