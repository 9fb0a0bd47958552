"""Comparison of all files of a dataset, its captions and its embeddings with their manifests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple, get_args

from siclip.errors import UserError
from siclip_platform.datasets.manifest import MANIFEST, Dataset, ShardEntry, check_shard, read_manifest
from siclip_platform.datasets.sidecar import SidecarKind, read_sidecar, sidecar_folder, sidecar_names
from siclip_platform.storage import AnyPath, StoreError, as_path
from siclip_platform.storage.hashing import sha256_of

READERS = 4
Check = Callable[[], "Damage | None"]


class Damage(NamedTuple):
    """A damaged file and its problem."""

    path: AnyPath
    problem: str


def verify_dataset(folder: str | AnyPath, progress: Callable[[int, int], None] | None = None) -> list[Damage]:
    """Read every file and compare its SHA-256 with the manifests.

    Args:
        folder: path or URI.
        progress: called with (files done, all files).

    Returns:
        The damaged files: shards, then the ledger, then captions and embeddings.

    Raises:
        UserError: the dataset has no readable manifest.
        StoreError: the store does not answer or refuses.
    """
    root = as_path(folder).absolute()
    dataset = Dataset(root, read_manifest(root))
    checks = list(_checks(dataset))
    found = []
    with ThreadPoolExecutor(READERS) as readers:
        for done, damage in enumerate(readers.map(lambda check: check(), checks), 1):
            found += [damage] if damage else []
            if progress is not None:
                progress(done, len(checks))
    return found


def _checks(dataset: Dataset) -> Iterator[Check]:
    for entries in dataset.manifest.splits.values():
        yield from (partial(_shard_damage, dataset.folder, entry) for entry in entries)
    ledger = dataset.manifest.recipe.get("ledger")
    if ledger:
        yield partial(_file_damage, dataset.folder / ledger["path"], ledger["sha256"])
    for kind in get_args(SidecarKind):
        for name in sidecar_names(dataset.folder, kind):
            yield from _sidecar_checks(dataset, kind, name)


def _sidecar_checks(dataset: Dataset, kind: SidecarKind, name: str) -> Iterator[Check]:
    try:
        sidecar = read_sidecar(dataset, kind, name)
    except StoreError:
        raise
    except UserError as error:
        damage = Damage(sidecar_folder(dataset.folder, kind, name) / MANIFEST, str(error))
        yield lambda: damage
        return
    for entries in sidecar.manifest.splits.values():
        yield from (partial(_file_damage, sidecar.folder / entry.path, entry.sha256) for entry in entries)


def _shard_damage(folder: AnyPath, entry: ShardEntry) -> Damage | None:
    try:
        check_shard(folder, entry)
    except StoreError:
        raise
    except UserError as error:
        return Damage(folder / entry.path, str(error))
    return _file_damage(folder / entry.path, entry.sha256)


def _file_damage(path: AnyPath, sha256: str) -> Damage | None:
    try:
        found = sha256_of(path)
    except OSError as error:
        return Damage(path, f"{path} cannot be read: {error.strerror or error}")
    if found == sha256:
        return None
    return Damage(path, f"{path} has SHA-256 {found[:12]}…, but its manifest lists {sha256[:12]}…")
