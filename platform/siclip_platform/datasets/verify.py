"""A dataset against its manifest, to the byte."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from siclip_platform.datasets.manifest import ShardEntry, check_shard, read_manifest
from siclip_platform.datasets.stage import sha256_of
from siclip_platform.errors import UserError
from siclip_platform.storage import Place, place

READERS = 4


class Damage(NamedTuple):
    """A file of the dataset and what is wrong with it."""

    path: Place
    problem: str


def verify_dataset(folder: str | Place, progress: Callable[[int, int], None] | None = None) -> list[Damage]:
    """Read every shard, and the ledger where there is one, and compare with the manifest; damage in its order.

    Raises:
        UserError: there is no readable manifest.
    """
    where = place(folder).absolute()
    manifest = read_manifest(where)
    entries = [entry for split in manifest.splits.values() for entry in split]
    found = []
    with ThreadPoolExecutor(READERS) as readers:
        for done, damage in enumerate(readers.map(lambda entry: _shard_damage(where, entry), entries), 1):
            found += [damage] if damage else []
            if progress is not None:
                progress(done, len(entries))
    ledger = manifest.recipe.get("ledger")
    if ledger:
        damage = _file_damage(where / ledger["path"], ledger["sha256"])
        found += [damage] if damage else []
    return found


def _shard_damage(folder: Place, entry: ShardEntry) -> Damage | None:
    try:
        check_shard(folder, entry)
    except UserError as error:
        return Damage(folder / entry.path, str(error))
    return _file_damage(folder / entry.path, entry.sha256)


def _file_damage(path: Place, sha256: str) -> Damage | None:
    try:
        found = sha256_of(path)
    except OSError as error:
        return Damage(path, f"{path} cannot be read: {error.strerror}")
    if found == sha256:
        return None
    return Damage(path, f"{path} has other bytes (SHA-256 {found[:12]}…) than the manifest says ({sha256[:12]}…)")
