"""Digit scenes, the embedded default dataset: real handwriting in generated scenes with templated captions.

A scene is two digits on a dark ground, one left of, right of, above or below the other. It says nothing about
quality on photographs. Splits share no handwritten instance; some (digit, colour) combinations occur in test
alone; no two scenes of validation, and no two of test, have the same description. Everything about scene k of
a split follows from (seed, split, k), so the result does not depend on how the work is spread.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from siclip.errors import UserError
from siclip_platform.datasets.digits.composition import (
    SPLITS,
    DigitScenesConfig,
    ShardSpec,
    compose_scene,
    compose_shard,
    shard_specs,
)
from siclip_platform.datasets.digits.scenes import held_out_combinations
from siclip_platform.datasets.manifest import (
    MANIFEST,
    Dataset,
    Manifest,
    ShardEntry,
    open_dataset,
    write_manifest,
    write_shard,
)
from siclip_platform.storage.atomic import TEMPORARY
from siclip_platform.storage.locking import locked

__all__ = [
    "DigitScenesConfig",
    "ShardSpec",
    "build_digit_scenes",
    "compose_scene",
    "compose_shard",
    "digit_scenes_recipe",
    "shard_specs",
]

NAME = "digit-scenes"
VERSION = "1"  # raise it whenever the same config gives other bytes
BUILDING = ".building"  # lies in the folder from a build's first moment until its manifest is written


def digit_scenes_recipe(config: DigitScenesConfig) -> dict[str, Any]:
    """The ``recipe`` in the manifest: the config and the combinations that only test shows."""
    held_out = sorted([digit, colour] for digit, colour in held_out_combinations(config.seed))
    return {"config": config.model_dump(mode="json"), "held_out": held_out}


def build_digit_scenes(
    folder: Path, config: DigitScenesConfig, progress: Callable[[int, int], None] | None = None
) -> Dataset:
    """Build the dataset in ``folder`` with Ray Data, one task per shard; Ray must be initialised.

    A folder that already holds it is returned as it is. The manifest is written last: after a killed build
    there is none, and calling again starts over. A second caller waits for the first. On a cluster every node
    must see ``folder``.

    Args:
        progress: called in this process with (scenes written, all scenes).

    Raises:
        UserError: ``folder`` cannot be written, or holds another dataset or foreign files.
    """
    folder = folder.absolute()
    recipe = digit_scenes_recipe(config)
    if (folder / MANIFEST).exists():
        return _existing(folder, recipe)
    with _claimed(folder):
        if (folder / MANIFEST).exists():  # another process has built it meanwhile
            return _existing(folder, recipe)
        specs = shard_specs(config)
        entries = _write_shards(folder, specs, progress)
        for leftover in set(_own_files(folder)) - {folder / name for name in entries}:
            leftover.unlink()  # of a killed build
        splits: dict[str, list[ShardEntry]] = {split: [] for split in SPLITS}
        for spec in specs:
            splits[spec.split].append(entries[spec.file_name])
        write_manifest(folder, Manifest(name=NAME, version=VERSION, recipe=recipe, splits=splits))
    return open_dataset(folder)


def _existing(folder: Path, recipe: dict[str, Any]) -> Dataset:
    dataset = open_dataset(folder)
    found = dataset.manifest
    if (found.name, found.version, found.recipe) != (NAME, VERSION, recipe):
        raise UserError(
            f"{folder} holds the dataset {found.name!r} (version {found.version}) of another recipe "
            f"{json.dumps(found.recipe)}: name another folder, or delete this one to build {NAME!r} there"
        )
    return dataset


def _own_files(folder: Path) -> list[Path]:
    patterns = [f"{split}-[0-9]*.parquet" for split in SPLITS] + [TEMPORARY]
    return [path for pattern in patterns for path in folder.glob(pattern)]


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Hold the folder for one build at a time; something foreign in it is left alone and refused."""
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if any(folder.iterdir()) and not any((folder / name).exists() for name in (BUILDING, MANIFEST)):
                raise UserError(
                    f"{folder} is not empty and not a dataset: name an empty or a new folder for {NAME!r}"
                )
            stack.enter_context(locked(folder / BUILDING))
        except OSError as error:
            raise UserError(
                f"cannot build {NAME!r} in {folder}: {error}; name a folder that can be written"
            ) from None
        yield
        (folder / BUILDING).unlink(missing_ok=True)


def _write_shards(
    folder: Path, specs: list[ShardSpec], progress: Callable[[int, int], None] | None
) -> dict[str, ShardEntry]:
    """File name → entry. The specs travel as their numbers: a Ray Data row holds plain values only."""
    import ray.data

    def write(row: dict[str, Any]) -> dict[str, Any]:
        spec = specs[row["spec"]]
        entry = write_shard(compose_shard(spec), folder / spec.file_name, spec.config.row_group_rows)
        return entry.model_dump()

    total = sum(spec.stop - spec.start for spec in specs)
    done = 0
    items = [{"spec": number} for number in range(len(specs))]
    entries: dict[str, ShardEntry] = {}
    for row in ray.data.from_items(items, override_num_blocks=len(items)).map(write).iter_rows():
        entry = ShardEntry.model_validate(row)
        entries[entry.path] = entry
        done += entry.rows
        if progress is not None:
            progress(done, total)
    return entries
