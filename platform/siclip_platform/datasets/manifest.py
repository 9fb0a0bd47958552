"""A dataset is a folder of Parquet shards and a ``manifest.json`` that lists them; the manifest's hash is its id."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, ValidationError, field_validator

from siclip.config import Config
from siclip.errors import UserError
from siclip_platform.datasets.parquet import Footer, read_footer
from siclip_platform.datasets.schema import SCHEMA, validate_schema, validate_table
from siclip_platform.storage import AnyPath, RemotePath, Stat, as_path, in_threads
from siclip_platform.storage.atomic import replacing, write_text_atomically
from siclip_platform.storage.hashing import canonical_hash

MANIFEST = "manifest.json"


class ShardEntry(Config):
    """One Parquet file.

    Attributes:
        path: relative to the dataset's folder.
        rows: number of rows.
        bytes: size of the file.
        sha256: of the file, in hex.
        row_groups: number of row groups.
    """

    path: str
    rows: int = Field(ge=0)
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    row_groups: int = Field(ge=0)

    @field_validator("path")
    @classmethod
    def _inside_folder(cls, path: str) -> str:
        parts = PurePosixPath(path).parts
        if not parts or path.startswith("/") or ".." in parts:
            raise ValueError("must be a path inside the dataset's folder")
        return path


class Manifest(Config):
    """The content of a dataset.

    Attributes:
        name: of the dataset.
        version: of the code that built it.
        recipe: the parameters of the build; JSON values only.
        splits: the shards of each split, in order.
    """

    name: str
    version: str
    recipe: dict[str, Any]
    splits: dict[str, list[ShardEntry]]

    @property
    def hash(self) -> str:
        """First 16 hex digits of the SHA-256 of the canonical JSON; independent of paths and times."""
        return canonical_hash(self.model_dump(mode="json"))


@dataclass(frozen=True)
class Dataset:
    """An opened dataset.

    Attributes:
        folder: where it is.
        manifest: its content.
        checked: shard path → rows of each row group, for the shards whose footers were read.
    """

    folder: AnyPath
    manifest: Manifest
    checked: Mapping[str, tuple[int, ...]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def hash(self) -> str:
        return self.manifest.hash

    @property
    def split_names(self) -> list[str]:
        return list(self.manifest.splits)

    def rows(self, split: str) -> int:
        return sum(entry.rows for entry in self.entries(split))

    @property
    def local_folder(self) -> Path:
        """The folder, for code that writes captions or embeddings beside the shards.

        Raises:
            UserError: the dataset is in a store.
        """
        if isinstance(self.folder, RemotePath):
            raise UserError(
                f"{self.folder} is in a store, but captions and embeddings are written to a local folder: copy the "
                "dataset to this machine and upload the result with siclip-platform data push"
            )
        return self.folder

    def shards(self, split: str) -> list[AnyPath]:
        """Return absolute paths, in the order of the manifest."""
        return [self.folder / entry.path for entry in self.entries(split)]

    def groups(self, split: str) -> list[tuple[int, ...]]:
        """Return the rows of each row group of each shard."""

        def of(entry: ShardEntry) -> tuple[int, ...]:
            known = self.checked.get(entry.path)
            return read_footer(self.folder / entry.path).groups if known is None else known

        return in_threads(of, self.entries(split), self.folder)

    def entries(self, split: str) -> list[ShardEntry]:
        """Return the manifest's entries of a split.

        Raises:
            UserError: there is no such split; the message lists the existing ones.
        """
        if split not in self.manifest.splits:
            if not self.split_names:
                raise UserError(f"dataset {self.folder} has no splits: it is empty; build or import it again")
            raise UserError(f"dataset {self.folder} has no split {split!r}: it has {', '.join(self.split_names)}")
        return self.manifest.splits[split]


def write_shard(table: pa.Table, path: Path, row_group_size: int) -> ShardEntry:
    """Validate a table and write it to ``path``, completely or not at all. Equal tables give equal bytes.

    The path of the returned entry is the file's name, because shards are directly in the dataset's folder.

    Raises:
        UserError: the table does not match the schema (see `validate_table`).
    """
    validate_table(table, f"table for {path}")
    # One column order and nullability, so that equal rows give equal bytes.
    table = table.select(SCHEMA.names).cast(SCHEMA)
    with replacing(path) as temporary:
        pq.write_table(table, temporary, row_group_size=row_group_size, compression="zstd", compression_level=3)
        payload = temporary.read_bytes()
    return ShardEntry(
        path=path.name,
        rows=table.num_rows,
        bytes=len(payload),
        sha256=hashlib.sha256(payload).hexdigest(),
        row_groups=pq.ParquetFile(path).num_row_groups,
    )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``folder/manifest.json``, completely or not at all."""
    write_text_atomically(folder / MANIFEST, json.dumps(manifest.model_dump(mode="json"), indent=2) + "\n")


def open_dataset(folder: str | AnyPath) -> Dataset:
    """Read the manifest at a path or URI and compare every shard with it: size, schema, rows, row groups.

    Checksums are not compared; `siclip_platform.datasets.tools.verify` does that.

    Raises:
        UserError: no folder, no manifest, an unreadable manifest, or a shard that differs from it.
    """
    root = as_path(folder).absolute()
    manifest = read_manifest(root)
    entries = [entry for split in manifest.splits.values() for entry in split]
    footers = in_threads(lambda entry: check_shard(root, entry), entries, root)
    return Dataset(root, manifest, {e.path: footer.groups for e, footer in zip(entries, footers, strict=True)})


def read_manifest(folder: AnyPath) -> Manifest:
    """Read the manifest without checking the shards.

    Raises:
        UserError: no folder, no manifest, or an unreadable one.
    """
    path = folder / MANIFEST
    if isinstance(folder, RemotePath):
        if not path.is_file():
            raise UserError(
                f"there is no dataset at {folder}: it has no {MANIFEST}. Correct the bucket or the path, or upload a "
                "dataset with siclip-platform data push"
            )
    elif not folder.exists():
        raise UserError(
            f"dataset folder {folder} does not exist: build it (siclip-platform data build) or name another"
        )
    elif not folder.is_dir():
        raise UserError(f"{folder} is a file, not a dataset folder: name the folder that contains {MANIFEST}")
    elif not path.is_file():
        raise UserError(
            f"{folder} is not a dataset: it contains no {MANIFEST} (a build writes it last, so an interrupted "
            "build has none). Run the build again or name another folder"
        )
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, item['loc'])) or '(file)'}: {item['msg']}" for item in error.errors()]
        raise UserError(
            f"{path} is not the manifest of a dataset; build the dataset again:\n" + "\n".join(lines)
        ) from None


def check_shard(folder: AnyPath, entry: ShardEntry) -> Footer:
    """Compare a shard's size, schema, rows and row groups with its entry; return the shard's footer.

    Raises:
        UserError: the shard is missing, unreadable, or differs.
    """
    path = folder / entry.path
    remedy = "build the dataset again in an empty folder"
    try:
        found = path.stat()
    except FileNotFoundError:
        raise UserError(f"shard {path} is missing although {folder / MANIFEST} lists it: {remedy}") from None
    if found.st_size != entry.bytes:
        raise UserError(f"shard {path} has {found.st_size} bytes, but its manifest lists {entry.bytes}: {remedy}")
    try:
        footer = read_footer(path, Stat(found.st_size, found.st_mtime_ns))
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"shard {path} is not a readable Parquet file ({error}): {remedy}") from None
    validate_schema(footer.schema, f"shard {path}")
    rows, row_groups = sum(footer.groups), len(footer.groups)
    if (rows, row_groups) != (entry.rows, entry.row_groups):
        raise UserError(
            f"shard {path} has {rows} rows in {row_groups} row groups, but its manifest lists {entry.rows} in "
            f"{entry.row_groups}: {remedy}"
        )
    return footer
