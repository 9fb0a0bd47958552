"""Sidecars: captions, teacher embeddings and false captions beside a dataset, row by row in the order of its shards.

``DATASET/captions/NAME/``, ``DATASET/embeddings/NAME/`` and ``DATASET/negatives/NAME/`` contain a ``manifest.json``
and one Parquet file for each shard of the dataset, with the same file name, rows and row groups. The dataset's own
files are never changed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
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
from siclip_platform.datasets.schema import CAPTION, FALSE_CAPTION
from siclip_platform.storage import AnyPath, RemotePath, Stat, in_threads
from siclip_platform.storage.atomic import replacing, write_text_atomically
from siclip_platform.storage.hashing import canonical_hash, sha256_of

SidecarKind = Literal["captions", "embeddings", "negatives"]
COMMANDS = {"captions": "data caption", "embeddings": "data embed", "negatives": "data negatives"}
REMEDY = "delete its folder and build it again"
CAPTIONS_SCHEMA = pa.schema([pa.field("captions", pa.list_(CAPTION), nullable=False)])
NEGATIVES_SCHEMA = pa.schema([pa.field("negatives", pa.list_(pa.list_(FALSE_CAPTION)), nullable=False)])
"""For each caption of a row, its false captions."""


class SidecarManifest(Config):
    """The content of a sidecar.

    Attributes:
        kind: captions, embeddings or negatives.
        name: of the sidecar.
        version: of the code that built it.
        dataset: hash of the manifest of its dataset.
        recipe: the parameters of the build; JSON values only.
        splits: the shards of each split, in the dataset's order.
    """

    kind: SidecarKind
    name: str
    version: str
    dataset: str
    recipe: dict[str, Any]
    splits: dict[str, list[ShardEntry]]

    @property
    def hash(self) -> str:
        """First 16 hex digits of the SHA-256 of the canonical JSON; independent of paths and times."""
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
        """Return absolute paths, in the order of the dataset's shards of this split.

        Raises:
            UserError: the sidecar was not built for this split.
        """
        if split not in self._paths:
            raise UserError(
                f"{self.folder} has no split {split!r}: it has {', '.join(self._paths)}. Build one under another "
                f"name with --split {split}"
            )
        return self._paths[split]

    def read(self, split: str, shard: int, row_group: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the rows for row group ``row_group`` of the dataset's ``shard``-th shard of a split."""
        with parquet_file(self.shards(split)[shard]) as file:
            return file.read_row_group(row_group, columns=None if columns is None else list(columns))


@overload
def sidecar_folder(dataset: Path, kind: SidecarKind, name: str) -> Path: ...
@overload
def sidecar_folder(dataset: AnyPath, kind: SidecarKind, name: str) -> AnyPath: ...
def sidecar_folder(dataset: AnyPath, kind: SidecarKind, name: str) -> AnyPath:
    """Return the folder of a sidecar.

    Raises:
        UserError: the name cannot be the name of a folder.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UserError(f"{name!r} is not a valid name for {kind}: use letters, digits, '.', '_' and '-'")
    return dataset.absolute() / kind / name


class SidecarWriter:
    """Writes a file of a sidecar table by table, completely or not at all. Equal tables give equal bytes.

    Each table becomes a row group. Without `close` nothing is left but a temporary file.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        options: dict[str, Any] = {"compression": "zstd", "compression_level": 3}
        if not {"captions", "negatives"} & set(schema.names):
            # The numbers of embeddings do not compress; without compression they are read fastest.
            options = {"compression": "none", "use_dictionary": False, "write_statistics": False}
        self._path, self._schema = path, schema
        self._stack = ExitStack()
        self._temporary = self._stack.enter_context(replacing(path))
        self._writer = self._stack.enter_context(pq.ParquetWriter(self._temporary, schema, **options))
        self._rows = self._groups = 0

    def add(self, table: pa.Table) -> None:
        size = max(1, table.num_rows)
        self._writer.write_table(table.select(self._schema.names).cast(self._schema), row_group_size=size)
        self._rows, self._groups = self._rows + table.num_rows, self._groups + 1

    def close(self) -> ShardEntry:
        self._writer.close()
        digest, size = sha256_of(self._temporary), self._temporary.stat().st_size
        self._stack.close()
        return ShardEntry(path=self._path.name, rows=self._rows, bytes=size, sha256=digest, row_groups=self._groups)

    def __enter__(self) -> SidecarWriter:
        return self

    def __exit__(self, *error: Any) -> None:
        # After `close` there is nothing left to do; after an error the temporary file is removed.
        self._stack.__exit__(*error)


def write_sidecar_shard(path: Path, groups: Iterable[pa.Table], schema: pa.Schema) -> ShardEntry:
    """Write each table as one row group, completely or not at all. Equal tables give equal bytes."""
    with SidecarWriter(path, schema) as writer:
        for table in groups:
            writer.add(table)
        return writer.close()


def write_sidecar_manifest(folder: Path, manifest: SidecarManifest) -> None:
    """Write ``folder/manifest.json``, completely or not at all. It is the last file of a sidecar to be written."""
    write_text_atomically(folder / MANIFEST, json.dumps(manifest.model_dump(mode="json"), indent=2) + "\n")


def sidecar_names(dataset: AnyPath, kind: SidecarKind) -> list[str]:
    """Return the names of the finished sidecars of a dataset."""
    if isinstance(dataset, RemotePath):
        return sorted(folder.name for folder in (dataset / kind).folders() if (folder / MANIFEST).is_file())
    return sorted(path.parent.name for path in (dataset / kind).glob(f"*/{MANIFEST}"))


def open_sidecar(dataset: Dataset, kind: SidecarKind, name: str) -> Sidecar:
    """Read the manifest and compare every shard with it and with the dataset: sizes, rows, row groups.

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
    """Read the manifest and compare it with the dataset's manifest, without checking the shards.

    Raises:
        UserError: there is no sidecar of this name, it was built for another manifest of the dataset, it lists other
            shards, or the captions that it was made of have been replaced.
    """
    folder = sidecar_folder(dataset.folder, kind, name)
    manifest = _read_manifest(dataset, folder, kind, name)
    if manifest.dataset != dataset.hash:
        raise UserError(
            f"{folder} was built for the dataset with manifest {manifest.dataset}, but {dataset.folder} now has "
            f"{dataset.hash}: build it again (siclip-platform {COMMANDS[kind]}) or restore that dataset"
        )
    for split, entries in manifest.splits.items():
        if [entry.path for entry in entries] != [source.path for source in dataset.entries(split)]:
            raise UserError(
                f"{folder} does not list the shards of split {split!r} of {dataset.folder}: build it again"
            )
    _check_used_captions(dataset, folder, manifest)
    return Sidecar(folder, manifest)


def _check_used_captions(dataset: Dataset, folder: AnyPath, manifest: SidecarManifest) -> None:
    """Refuse what was made of captions that have since been replaced under the same name."""
    for used in manifest.recipe.get("layout", {}).get("captions", ()):
        captions = sidecar_folder(dataset.folder, "captions", used["name"])
        if not (captions / MANIFEST).is_file():
            continue
        if _read_manifest(dataset, captions, "captions", used["name"]).hash != used["hash"]:
            raise UserError(
                f"{folder} contains {manifest.kind} of other captions than {captions} now has: {REMEDY} "
                f"(siclip-platform {COMMANDS[manifest.kind]})"
            )


def _read_manifest(dataset: Dataset, folder: AnyPath, kind: SidecarKind, name: str) -> SidecarManifest:
    try:
        manifest = SidecarManifest.model_validate_json((folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        known = ", ".join(sidecar_names(dataset.folder, kind)) or "none"
        raise UserError(
            f"{dataset.folder} has no finished {kind} {name!r}: it has {known}. Build them: siclip-platform "
            f"{COMMANDS[kind]} {dataset.folder} --name {name}"
        ) from None
    except (ValidationError, OSError) as error:
        raise UserError(f"{folder / MANIFEST} is not the manifest of a sidecar ({error}): build it again") from None
    if (manifest.kind, manifest.name) != (kind, name):
        raise UserError(
            f"{folder / MANIFEST} is the manifest of {manifest.kind} {manifest.name!r}: rename the folder back"
        )
    return manifest


def _check_shard(dataset: AnyPath, folder: AnyPath, entry: ShardEntry, expected: tuple[int, ...]) -> None:
    """Compare a shard with its entry; ``expected`` are the rows of each row group of the dataset's shard."""
    path = folder / entry.path
    try:
        found = path.stat()
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {REMEDY}") from None
    if found.st_size != entry.bytes:
        raise UserError(f"{path} has {found.st_size} bytes, but its manifest lists {entry.bytes}: {REMEDY}")
    try:
        groups = read_footer(path, Stat(found.st_size, found.st_mtime_ns)).groups
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is not a readable Parquet file ({error}): {REMEDY}") from None
    if groups != expected:
        raise UserError(
            f"{path} has row groups of {list(groups)} rows, but {dataset / entry.path} has {list(expected)}: {REMEDY}"
        )
