"""Import: a source of image–caption pairs → a dataset, and a ledger of the rejected rows.

Two stages on Ray Data. The first writes the checked rows of every part of the source to shards. The second rewrites
the shards that contain duplicates, or further rows of an image. Both store their files in ``DEST/.work``; the
manifest is written last.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from siclip.errors import UserError
from siclip_platform.datasets.derived.stage import Pool, Record, Task, run_stage
from siclip_platform.datasets.importing.beside import beside_entries
from siclip_platform.datasets.importing.deduplication import Changes, change_shard, find_changes
from siclip_platform.datasets.importing.ledger import LEDGER, LEDGER_SCHEMA, Tally, write_ledger
from siclip_platform.datasets.importing.parts import (
    ORDER,
    ImportConfig,
    PartJob,
    import_part,
    libraries,
)
from siclip_platform.datasets.importing.sources.find import ImportSource
from siclip_platform.datasets.manifest import (
    MANIFEST,
    Dataset,
    Manifest,
    ShardEntry,
    open_dataset,
    write_manifest,
)
from siclip_platform.datasets.sidecar import (
    SidecarKind,
    SidecarManifest,
    sidecar_folder,
    write_sidecar_manifest,
)
from siclip_platform.storage import without_credentials
from siclip_platform.storage.atomic import replacing
from siclip_platform.storage.hashing import canonical_hash, sha256_of
from siclip_platform.storage.locking import locked

VERSION = "3"  # increase it when the same source and config give other bytes
WORK = ".work"
LOCK = ".import.lock"
MAX_BAD_SHARE = 0.01


@dataclass(frozen=True)
class Imported:
    """An imported dataset.

    Attributes:
        dataset: as written.
        read: rows of the source.
        rejected: reason → rows.
        merged: rows that are further captions of another row's image.
    """

    dataset: Dataset
    read: int
    rejected: dict[str, int]
    merged: int = 0


def import_dataset(
    source: ImportSource,
    folder: Path,
    config: ImportConfig,
    *,
    name: str | None = None,
    max_bad_share: float = MAX_BAD_SHARE,
    pool: Pool | None = None,
    progress: Callable[[int, int, int], None] | None = None,
) -> Imported:
    """Import a source (see `sources.find.find_source`) into a folder; Ray must be initialised.

    After an interruption, a call with the same arguments (``max_bad_share`` may differ) resumes and gives the same
    bytes. A finished dataset in the folder is reused. A second caller waits for the first.

    Args:
        source: cut into parts.
        folder: of the dataset.
        config: settings.
        name: of the dataset; default: the source's.
        max_bad_share: stop above this share of bad rows.
        pool: where the tasks run; default: Ray tasks with one CPU each.
        progress: called in this process with (parts done, all parts, rows read).

    Raises:
        UserError: the folder cannot be written or contains something else, more than ``max_bad_share`` of the rows
            are bad, or no row can be used.
    """
    folder = folder.absolute()
    for split in config.shares:
        if config.split == split:
            raise UserError(f"--{split}-share and --split both name the split {split!r}: name another --split")
        named = next((part.name or part.files[0] for part in source.parts if part.split == split), None)
        if named is not None:
            raise UserError(f"--{split}-share, but {named} already is the split {split!r}: leave the option out")
    job = _Job(source, folder, config, name or _name(source.root), max_bad_share, pool or Pool(), progress)
    _check_folder(folder)
    # Not inside the work folder: a waiting process must still find the folder of the lock after the removal.
    with locked(folder / LOCK):
        if not (folder / MANIFEST).exists():
            job.run()
        imported = _existing(folder, job)
        # Only after the manifest: until then the work folder makes the import resumable.
        shutil.rmtree(folder / WORK, ignore_errors=True)
        (folder / LOCK).unlink()
    return imported


class _Shard(NamedTuple):
    """A shard: its split, where it was written, its entry, and kind → entry of what is beside it."""

    split: str
    path: Path
    entry: ShardEntry
    beside: dict[SidecarKind, ShardEntry]


@dataclass
class _Job:
    """An import in progress."""

    source: ImportSource
    folder: Path
    config: ImportConfig
    name: str
    max_bad_share: float
    pool: Pool
    progress: Callable[[int, int, int], None] | None
    tally: Tally = field(default_factory=Tally)

    @property
    def parts(self) -> Path:
        return self.folder / WORK / "parts"

    @property
    def settings(self) -> dict[str, Any]:
        """What determines the dataset's bytes, without paths and times; part of the manifest's recipe."""
        parts = [part.model_dump(mode="json") for part in self.source.parts]
        return {
            "source": {
                "layout": self.source.layout,
                "files": len(self.source.files),
                "bytes": sum(size for _, size in self.source.files),
                # The key and the spacing are a stored format: manifests of earlier imports have them.
                "pieces": canonical_hash(parts, spaced=True),
                **({"rows_per_part": self.source.rows_per_part} if self.source.rows_per_part else {}),
            },
            "config": self.config.model_dump(mode="json"),
            # Without the folders, because the manifest holds no paths.
            "access": {"outside": bool(self.source.access.outside), "hosts": list(self.source.access.hosts)},
        }

    @property
    def _plan(self) -> dict[str, Any]:
        return {"version": VERSION, **self.settings, "libraries": libraries()}

    def run(self) -> None:
        records = self._import_parts()
        changes = find_changes([self._part("keys", number) for number in range(len(records))], self.config)
        for part in changes.values():
            self.tally.add(0, part.reasons, part.merged)
        # A generator: its stage runs only when the shards are linked, after the checks below.
        shards = self._changed(records, changes)
        ledger = self._write_ledger(range(len(records)), changes)
        self.tally.check(self.max_bad_share, self.folder, finished=True)
        if not self.tally.written:
            raise UserError(
                f"none of the {self.tally.read:,} rows can be used: {self.folder / LEDGER} lists the reasons"
            )
        splits: dict[str, list[ShardEntry]] = {}
        beside: dict[SidecarKind, dict[str, list[ShardEntry]]] = {}
        for split, path, entry, others in shards:
            _link(path, self.folder / entry.path)
            splits.setdefault(split, []).append(entry)
            for kind, other in others.items():
                target = self._beside(kind) / entry.path
                target.parent.mkdir(parents=True, exist_ok=True)
                _link(path.with_name(f"{kind}-{path.name}"), target)
                listed = beside.setdefault(kind, {}).setdefault(split, [])
                listed.append(other.model_copy(update={"path": entry.path}))
        written = sum(entry.rows for entries in splits.values() for entry in entries)
        # A lost row must never go unnoticed.
        if written != self.tally.written or ledger["rows"] != self.tally.rejected:
            raise RuntimeError(
                f"{self.tally.read} rows read, but {written} written, {self.tally.merged} merged and "
                f"{ledger['rows']} in the ledger"
            )
        counts = {
            "read": self.tally.read,
            "written": written,
            "merged": self.tally.merged,
            "rejected": dict(sorted(self.tally.reasons.items())),
        }
        recipe = {**self.settings, "libraries": libraries(), "rows": counts, "ledger": ledger}
        manifest = Manifest(name=self.name, version=VERSION, recipe=recipe, splits=splits)
        self._write_beside(manifest.hash, beside)
        write_manifest(self.folder, manifest)

    def _beside(self, kind: SidecarKind) -> Path:
        assert self.config.beside is not None
        return sidecar_folder(self.folder, kind, self.config.beside.name)

    def _write_beside(self, dataset: str, found: dict[SidecarKind, dict[str, list[ShardEntry]]]) -> None:
        """Write the manifests of the sets beside the dataset, before its own: that one says that all is there."""
        if self.config.beside is None:
            return
        settings = {"source": self.source.layout, "beside": self.config.beside.model_dump(mode="json")}
        name = self.config.beside.name
        captions = SidecarManifest(
            kind="captions",
            name=name,
            version=VERSION,
            dataset=dataset,
            recipe=settings,
            splits=found["captions"],
        )
        layout = self.config.beside.layout(captions.hash).model_dump(mode="json")
        embeddings = captions.model_copy(
            update={"kind": "embeddings", "recipe": {"layout": layout, **settings}, "splits": found["embeddings"]}
        )
        for manifest in (captions, embeddings):
            write_sidecar_manifest(self._beside(manifest.kind), manifest)

    def _import_parts(self) -> list[Record]:
        jobs = [
            PartJob(
                root=self.source.roots[part.root],
                number=number,
                piece=part,
                config=self.config,
                access=self.source.access,
                rows=self.source.rows_per_part,
                label=self.source.labels[part.root],
            )
            for number, part in enumerate(self.source.parts)
        ]
        tasks = [Task(name=f"{job.number:05d}", payload=job.payload()) for job in jobs]
        done: list[int] = []

        def count(record: Record) -> None:
            done.append(int(record.task))
            self.tally.add(record.result["read"], record.result["reasons"], record.result["merged"])
            if self.progress is not None:
                self.progress(len(done), len(tasks), self.tally.read)
            try:
                self.tally.check(self.max_bad_share, self.folder, finished=len(done) == len(tasks))
            except UserError:
                # The user needs the reasons to decide about the bad rows.
                self._write_ledger(sorted(done), {})
                raise

        return run_stage(self.parts, self._plan, tasks, import_part, pool=self.pool, on_record=count)

    def _changed(self, records: list[Record], changes: dict[int, Changes]) -> Iterator[_Shard]:
        """Yield every shard after the changes, in the order of the source."""

        def path_of(part: int, shard: int) -> Path:
            return self.parts / str(records[part].result["shards"][shard]["path"])

        tasks = {}
        for part, change in changes.items():
            for shard in change.shards:
                payload = {
                    "source": str(path_of(part, shard)),
                    "split": records[part].result["shards"][shard]["split"],
                    "drop": sorted(change.rows.get(shard, [])),
                    "captions": [[row, str(path_of(p, s)), i] for row, p, s, i in change.captions.get(shard, [])],
                    "moved": {split: sorted(moved) for split, moved in sorted(change.moved.get(shard, {}).items())},
                    "row_group_rows": self.config.row_group_rows,
                }
                if self.config.beside is not None:
                    payload["beside"] = self.config.beside.model_dump(mode="json")
                tasks[part, shard] = Task(name=path_of(part, shard).stem, payload=payload)
        kept = self.folder / WORK / "kept"
        rewritten = run_stage(kept, self._plan, list(tasks.values()), change_shard, pool=self.pool)
        results = {key: record.result for key, record in zip(tasks, rewritten, strict=True)}
        for part, record in enumerate(records):
            for number, shard in enumerate(record.result["shards"]):
                changed = (part, number) in results
                for each in results[part, number]["shards"] if changed else [shard]:
                    entry = ShardEntry.model_validate({key: each[key] for key in ShardEntry.model_fields})
                    path = (kept if changed else self.parts) / entry.path
                    yield _Shard(each["split"], path, entry, beside_entries(each))

    def _write_ledger(self, parts: Any, changes: dict[int, Changes]) -> dict[str, Any]:
        schema = pa.schema([ORDER, *LEDGER_SCHEMA])

        def tables() -> Iterator[pa.Table]:
            for number in parts:
                found = pq.ParquetFile(self._part("ledger", number))
                if number in changes and changes[number].ledger:
                    yield pa.concat_tables([found.read().cast(schema), changes[number].table]).sort_by("order")
                else:
                    # In pieces: a part of nulls has millions of rejected rows.
                    yield from (pa.Table.from_batches([batch]) for batch in found.iter_batches())

        digest, rows = write_ledger(self.folder / LEDGER, tables())
        return {"path": LEDGER, "rows": rows, "sha256": digest}

    def _part(self, what: str, number: int) -> Path:
        return self.parts / f"{what}-{number:05d}.parquet"


def _name(root: str) -> str:
    return Path(without_credentials(root).partition("?")[0].rstrip("/")).stem or "imported"


def _check_folder(folder: Path) -> None:
    try:
        foreign = folder.exists() and any(folder.iterdir())
        if foreign and not (folder / WORK).is_dir() and not (folder / MANIFEST).is_file():
            raise UserError(f"{folder} is not empty and not a dataset: name an empty or a new folder")
        (folder / WORK).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error}; name a folder that can be written") from None


def _existing(folder: Path, job: _Job) -> Imported:
    dataset = open_dataset(folder)
    found = dataset.manifest
    if found.version != VERSION and "source" in found.recipe:
        raise UserError(
            f"{folder} was imported by another version ({found.version}, now {VERSION}), which gave other bytes: "
            "keep it as it is, or name another folder"
        )
    if {key: found.recipe.get(key) for key in job.settings} != job.settings:
        raise UserError(
            f"{folder} contains the dataset {found.name!r} of another source or other settings: name another folder, "
            "or delete this one"
        )
    rows = found.recipe["rows"]
    return Imported(dataset, rows["read"], rows["rejected"], rows["merged"])


def _link(path: Path, target: Path) -> None:
    """Create ``target`` as a hard link to a file, or as a copy where the file system has no links."""
    if target.is_file() and target.stat().st_size == path.stat().st_size and sha256_of(target) == sha256_of(path):
        return
    with replacing(target) as temporary:
        try:
            os.link(path, temporary)
        except OSError:
            shutil.copyfile(path, temporary)
