"""Sidecars: captions and teacher embeddings that lie beside a dataset's shards and follow them row by row.

``DATASET/captions/NAME/`` and ``DATASET/embeddings/NAME/`` hold a ``manifest.json`` and, under the names of the
dataset's shards, Parquet files with the same rows in the same row groups. The dataset itself is never written to.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, overload

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from siclip.config import Config
from siclip.errors import UserError
from siclip_platform.datasets.manifest import MANIFEST, Dataset, ShardEntry
from siclip_platform.datasets.parquet import parquet_file, read_footer
from siclip_platform.datasets.schema import CAPTION
from siclip_platform.storage import AnyPath, RemotePath, Stat, in_threads
from siclip_platform.storage.atomic import replacing, write_text_atomically
from siclip_platform.storage.hashing import canonical_hash, sha256_of

SidecarKind = Literal["captions", "embeddings"]
COMMANDS = {"captions": "data caption", "embeddings": "data embed"}
REMEDY = "delete its folder and make it again"
CAPTIONS_SCHEMA = pa.schema([pa.field("captions", pa.list_(CAPTION), nullable=False)])


class SidecarManifest(Config):
    """What a sidecar holds. ``dataset``: hash of the manifest of the dataset that it belongs to."""

    kind: SidecarKind
    name: str
    version: str
    dataset: str
    recipe: dict[str, Any]
    splits: dict[str, list[ShardEntry]]

    @property
    def hash(self) -> str:
        """First 16 hex digits of the SHA-256 of the canonical JSON; free of places and times."""
        return canonical_hash(self.model_dump(mode="json"))


@dataclass(frozen=True)
class Sidecar:
    """An opened sidecar; picklable."""

    folder: AnyPath
    manifest: SidecarManifest

    @property
    def hash(self) -> str:
        return self.manifest.hash

    @cached_property
    def _paths(self) -> dict[str, list[AnyPath]]:
        return {
            split: [self.folder / entry.path for entry in entries] for split, entries in self.manifest.splits.items()
        }

    def shards(self, split: str) -> list[AnyPath]:
        """Absolute paths, in the order of the dataset's shards of this split.

        Raises:
            UserError: the sidecar was not made for this split.
        """
        if split not in self._paths:
            raise UserError(
                f"{self.folder} holds nothing for split {split!r}: it has {', '.join(self._paths)}. Make it again "
                f"with --split {split} under another name"
            )
        return self._paths[split]

    def read(self, split: str, shard: int, row_group: int, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows that belong to row group ``row_group`` of the dataset's ``shard``-th shard of a split."""
        with parquet_file(self.shards(split)[shard]) as file:
            return file.read_row_group(row_group, columns=None if columns is None else list(columns))


@overload
def sidecar_folder(dataset: Path, kind: SidecarKind, name: str) -> Path: ...
@overload
def sidecar_folder(dataset: AnyPath, kind: SidecarKind, name: str) -> AnyPath: ...
def sidecar_folder(dataset: AnyPath, kind: SidecarKind, name: str) -> AnyPath:
    """Where a sidecar of this name lies.

    Raises:
        UserError: the name is none for a folder.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UserError(f"{name!r} is no name for {kind}: use letters, digits, '.', '_' and '-'")
    return dataset.absolute() / kind / name


def write_sidecar_shard(path: Path, groups: Iterable[pa.Table], schema: pa.Schema) -> ShardEntry:
    """Write one table for each row group, whole or not at all; equal tables give equal bytes.

    Captions are compressed; numbers of embeddings, which do not compress, lie as they are.
    """
    plain = "captions" not in schema.names
    options: dict[str, Any] = {"compression": "zstd", "compression_level": 3}
    if plain:
        options = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    rows = count = 0
    with replacing(path) as temporary:
        with pq.ParquetWriter(temporary, schema, **options) as w:
            for table in groups:
                w.write_table(table.select(schema.names).cast(schema), row_group_size=max(1, table.num_rows))
                rows, count = rows + table.num_rows, count + 1
        digest = sha256_of(temporary)
        size = temporary.stat().st_size
    return ShardEntry(path=path.name, rows=rows, bytes=size, sha256=digest, row_groups=count)


def write_sidecar_manifest(folder: Path, manifest: SidecarManifest) -> None:
    """Write ``folder/manifest.json`` whole or not at all; the last file of a sidecar."""
    write_text_atomically(folder / MANIFEST, json.dumps(manifest.model_dump(mode="json"), indent=2) + "\n")


def sidecar_names(dataset: AnyPath, kind: SidecarKind) -> list[str]:
    """Names of the finished sidecars of a dataset."""
    if isinstance(dataset, RemotePath):
        return sorted(folder.name for folder in (dataset / kind).folders() if (folder / MANIFEST).is_file())
    return sorted(path.parent.name for path in (dataset / kind).glob(f"*/{MANIFEST}"))


def open_sidecar(dataset: Dataset, kind: SidecarKind, name: str) -> Sidecar:
    """Read the manifest and check every shard against it and against the dataset's: sizes, rows, row groups.

    Raises:
        UserError: as `read_sidecar`, or a shard differs.
    """
    sidecar = read_sidecar(dataset, kind, name)
    folder = sidecar.folder
    for split, entries in sidecar.manifest.splits.items():
        groups = zip(entries, dataset.groups(split), strict=True)
        in_threads(lambda pair: _check_shard(dataset.folder, folder, *pair), groups, folder)
    return sidecar


def read_sidecar(dataset: Dataset, kind: SidecarKind, name: str) -> Sidecar:
    """Read the manifest and compare it with the dataset's; its shards are not looked at.

    Raises:
        UserError: there is none of this name, it belongs to another manifest of the dataset or lists other shards,
            or the captions that it embeds were made again.
    """
    folder = sidecar_folder(dataset.folder, kind, name)
    manifest = _read_manifest(dataset, folder, kind, name)
    if manifest.dataset != dataset.hash:
        raise UserError(
            f"{folder} was made for the dataset with manifest {manifest.dataset}, {dataset.folder} now has "
            f"{dataset.hash}: make it again (siclip-platform {COMMANDS[kind]}) or go back to that dataset"
        )
    for split, entries in manifest.splits.items():
        if [entry.path for entry in entries] != [source.path for source in dataset.entries(split)]:
            raise UserError(
                f"{folder} does not list the shards of split {split!r} of {dataset.folder}: make it again"
            )
    _check_used_captions(dataset, folder, manifest)
    return Sidecar(folder, manifest)


def _check_used_captions(dataset: Dataset, folder: AnyPath, manifest: SidecarManifest) -> None:
    """Embeddings name the captions whose texts they hold; those may have been made again under the same name."""
    for used in manifest.recipe.get("layout", {}).get("captions", ()):
        place = sidecar_folder(dataset.folder, "captions", used["name"]) / MANIFEST
        if place.is_file() and _read_manifest(dataset, place.parent, "captions", used["name"]).hash != used["hash"]:
            raise UserError(
                f"{folder} holds embeddings of other captions than {place.parent} now has: {REMEDY} "
                f"(siclip-platform {COMMANDS['embeddings']})"
            )


def _read_manifest(dataset: Dataset, folder: AnyPath, kind: SidecarKind, name: str) -> SidecarManifest:
    try:
        manifest = SidecarManifest.model_validate_json((folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        known = ", ".join(sidecar_names(dataset.folder, kind)) or "none"
        raise UserError(
            f"{dataset.folder} has no finished {kind} {name!r}: there are {known}. Make them: siclip-platform "
            f"{COMMANDS[kind]} {dataset.folder} --name {name}"
        ) from None
    except (ValidationError, OSError) as error:
        raise UserError(f"{folder / MANIFEST} is not a sidecar's manifest ({error}): make it again") from None
    if (manifest.kind, manifest.name) != (kind, name):
        raise UserError(f"{folder / MANIFEST} is that of {manifest.kind} {manifest.name!r}: a folder was moved")
    return manifest


def _check_shard(dataset: AnyPath, folder: AnyPath, entry: ShardEntry, wanted: tuple[int, ...]) -> None:
    """``wanted``: rows of each row group of the dataset's shard."""
    path = folder / entry.path
    try:
        found = path.stat()
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {REMEDY}") from None
    if found.st_size != entry.bytes:
        raise UserError(f"{path} has {found.st_size} bytes, its manifest says {entry.bytes}: {REMEDY}")
    try:
        groups = read_footer(path, Stat(found.st_size, found.st_mtime_ns)).groups
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is not a readable Parquet file ({error}): {REMEDY}") from None
    if groups != wanted:
        raise UserError(
            f"{path} has row groups of {list(groups)} rows, {dataset / entry.path} of {list(wanted)}: {REMEDY}"
        )
