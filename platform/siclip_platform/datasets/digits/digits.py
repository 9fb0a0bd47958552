"""Digit scenes, the default dataset: real handwritten digits in generated scenes with templated captions.

A scene is two digits on a dark background, one left of, right of, above or below the other. Results on it do not
predict quality on photographs. The splits share no handwritten instance, some (digit, colour) combinations occur only
in test, and no two scenes of validation or of test have the same description. (seed, split, k) determine scene k of a
split, so the dataset does not depend on the distribution of the work.
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
VERSION = "1"  # increase it when the same config gives other bytes
BUILDING = ".building"  # lock file; exists from the start of a build until its manifest is written


def digit_scenes_recipe(config: DigitScenesConfig) -> dict[str, Any]:
    """Return the manifest's ``recipe``: the config, and the combinations that occur only in test."""
    held_out = sorted([digit, colour] for digit, colour in held_out_combinations(config.seed))
    return {"config": config.model_dump(mode="json"), "held_out": held_out}


def build_digit_scenes(
    folder: Path, config: DigitScenesConfig, progress: Callable[[int, int], None] | None = None
) -> Dataset:
    """Build the dataset in ``folder`` with Ray Data, one task per shard; Ray must be initialised.

    A finished dataset in the folder is reused. The manifest is written last: a killed build leaves none, and another
    call starts from scratch. A second caller waits for the first. On a cluster every node must see ``folder``.

    Args:
        folder: of the dataset.
        config: of the scenes.
        progress: called in this process with (scenes written, all scenes).

    Raises:
        UserError: ``folder`` cannot be written, or contains another dataset or foreign files.
    """
    folder = folder.absolute()
    recipe = digit_scenes_recipe(config)
    if (folder / MANIFEST).exists():
        return _existing(folder, recipe)
    with _claimed(folder):
        # Another process may have built the dataset while this one waited for the lock.
        if (folder / MANIFEST).exists():
            return _existing(folder, recipe)
        specs = shard_specs(config)
        entries = _write_shards(folder, specs, progress)
        # Files of a killed build, perhaps with other shards.
        for leftover in set(_own_files(folder)) - {folder / name for name in entries}:
            leftover.unlink()
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
            f"{folder} contains the dataset {found.name!r} (version {found.version}) of another recipe "
            f"{json.dumps(found.recipe)}: name another folder, or delete this one to build {NAME!r} in it"
        )
    return dataset


def _own_files(folder: Path) -> list[Path]:
    patterns = [f"{split}-[0-9]*.parquet" for split in SPLITS] + [TEMPORARY]
    return [path for pattern in patterns for path in folder.glob(pattern)]


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Hold the folder for one build at a time; refuse a folder with foreign files."""
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
    """Write the shards with Ray Data and return file name → entry."""
    import ray.data

    def write(row: dict[str, Any]) -> dict[str, Any]:
        spec = specs[row["spec"]]
        entry = write_shard(compose_shard(spec), folder / spec.file_name, spec.config.row_group_rows)
        return entry.model_dump()

    total = sum(spec.stop - spec.start for spec in specs)
    done = 0
    # Rows of Ray Data have plain values only, so a spec is passed by its index.
    items = [{"spec": number} for number in range(len(specs))]
    entries: dict[str, ShardEntry] = {}
    for row in ray.data.from_items(items, override_num_blocks=len(items)).map(write).iter_rows():
        entry = ShardEntry.model_validate(row)
        entries[entry.path] = entry
        done += entry.rows
        if progress is not None:
            progress(done, total)
    return entries
