"""Building a sidecar: one task per shard of the dataset, then the manifest."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from siclip.config import Config
from siclip.errors import UserError
from siclip_platform.datasets.derived.stage import PLAN, Pool, Record, Steps, Task, clear_stage, run_stage
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

Progress = Callable[[int, int, int], None]
"""Takes (shards done, all shards, rows of those done)."""
"""(shards done, all shards)"""


class ShardJob(Config):
    """The payload of a task: one shard of the dataset.

    Attributes:
        split: of the shard.
        number: index of the shard in its split.
        path: relative to the dataset's folder.
        sha256: of the shard.
    """

    split: str
    number: int = Field(ge=0)
    path: str
    sha256: str


@dataclass(frozen=True)
class BuiltSidecar:
    """A finished sidecar, and the sums of its tasks' counts."""

    sidecar: Sidecar
    counts: dict[str, int]


def chosen_splits(dataset: Dataset, splits: Sequence[str]) -> list[str]:
    """Return the requested splits, or all if none is requested.

    Raises:
        UserError: there is no such split.
    """
    for split in splits:
        dataset.entries(split)
    return [split for split in dataset.split_names if not splits or split in splits]


def build_sidecar(
    dataset: Dataset,
    kind: SidecarKind,
    name: str,
    version: str,
    recipe: Mapping[str, Any],
    splits: Sequence[str],
    work: type | Steps,
    pool: Pool,
    progress: Progress | None = None,
) -> BuiltSidecar:
    """Run ``work`` on every shard and write the manifest; Ray must be initialised unless the pool is ``here``.

    After an interruption, a call with the same arguments resumes and gives the same bytes. A finished sidecar is
    reused.

    Args:
        dataset: in a local folder.
        kind: captions or embeddings.
        name: of the sidecar.
        version: of the code in ``work``.
        recipe: JSON values that the result depends on.
        splits: whose shards are processed.
        work: class of a `siclip_platform.datasets.derived.stage.Work`, or `Steps`, whose results come from
            `shard_result`.
        pool: where it runs.
        progress: called after every shard.

    Raises:
        UserError: the folder contains a sidecar with another recipe, or cannot be written.
    """
    folder = sidecar_folder(dataset.local_folder, kind, name)
    none: dict[str, list[ShardEntry]] = {split: [] for split in splits}
    requested = SidecarManifest(
        kind=kind, name=name, version=version, dataset=dataset.hash, recipe=dict(recipe), splits=none
    )
    try:
        # Without parents: the dataset's folder must exist.
        folder.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder.parent}: {error}") from None
    # Beside the sidecar's folder, because the stage refuses foreign files in it.
    with locked(folder.parent / f".{name}.lock"):
        if not (folder / MANIFEST).exists():
            _run(dataset, folder, requested, work, pool, progress)
        built = _existing(dataset, kind, requested)
        # After the manifest: a process killed between the two leaves a finished sidecar with a plan.
        if (folder / PLAN).exists():
            clear_stage(folder)
    return built


def remaining_bytes(folder: Path, total: int) -> int:
    """Return how many of ``total`` bytes an unfinished sidecar in ``folder`` has not written yet."""
    return max(0, total - sum(path.stat().st_size for path in folder.glob("*.parquet")))


def check_free_space(folder: Path, total: int) -> None:
    """Check that the disk has room for a sidecar of ``total`` bytes; ``folder`` need not exist.

    Raises:
        UserError: it has not; the message states both sizes.
    """
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free, missing = shutil.disk_usage(existing).free, remaining_bytes(folder, total)
    if missing > free:
        raise UserError(
            f"{missing / 1e9:.2f} GB are still to be written to {folder} and its disk has {free / 1e9:.2f} GB free: "
            "free some space, or use fewer augmentations, fewer captions or int8"
        )


def shard_result(entry: ShardEntry, counts: Mapping[str, int]) -> dict[str, Any]:
    """Return the result of a task: the shard's entry, and numbers that are summed over the shards."""
    return {"entry": entry.model_dump(), "counts": dict(counts)}


def _run(
    dataset: Dataset,
    folder: Path,
    requested: SidecarManifest,
    work: type | Steps,
    pool: Pool,
    progress: Progress | None,
) -> None:
    jobs = [
        ShardJob(split=split, number=number, path=entry.path, sha256=entry.sha256)
        for split in requested.splits
        for number, entry in enumerate(dataset.entries(split))
    ]
    tasks = [Task(name=f"{index:05d}", payload=job.model_dump(mode="json")) for index, job in enumerate(jobs)]
    rows = [entry.rows for split in requested.splits for entry in dataset.entries(split)]
    done: list[int] = []

    def count(record: Record) -> None:
        done.append(rows[int(record.task)])
        if progress is not None:
            progress(len(done), len(tasks), sum(done))

    plan = requested.model_dump(mode="json")
    records = run_stage(folder, plan, tasks, work, pool=pool, on_record=count)
    splits: dict[str, list[ShardEntry]] = {split: [] for split in requested.splits}
    for job, record in zip(jobs, records, strict=True):
        splits[job.split].append(ShardEntry.model_validate(record.result["entry"]))
    counts = _summed(record.result["counts"] for record in records)
    recipe = {**requested.recipe, "counts": counts}
    write_sidecar_manifest(folder, requested.model_copy(update={"splits": splits, "recipe": recipe}))


def _existing(dataset: Dataset, kind: SidecarKind, requested: SidecarManifest) -> BuiltSidecar:
    sidecar = open_sidecar(dataset, kind, requested.name)
    found = sidecar.manifest
    recipe = {key: value for key, value in found.recipe.items() if key != "counts"}
    keys = sorted(recipe.keys() | requested.recipe.keys())
    differing = [key for key in keys if recipe.get(key) != requested.recipe.get(key)]
    if found.version != requested.version:
        differing.append("version")
    if list(found.splits) != list(requested.splits):
        differing.append("splits")
    if differing:
        raise UserError(
            f"{sidecar.folder} contains {kind} that differ in {', '.join(differing)}: choose another --name, or "
            "delete that folder"
        )
    return BuiltSidecar(sidecar, dict(found.recipe["counts"]))


def _summed(each: Iterator[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for counts in each:
        for key, value in counts.items():
            total[key] = total.get(key, 0) + value
    return total
