"""Captions in files → a caption set beside a dataset.

Two stages, both resumable. The first reads each file once and keeps, in ``DATASET/captions/.NAME.found/``, what
belongs to rows of the dataset, in pieces that are sorted by these rows. The second writes a shard of the set for each
shard of the dataset from its share of every piece. Neither needs more memory than the dataset's keys and a piece.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from siclip.errors import UserError
from siclip_platform.datasets.derived.sidecar_stage import (
    BuiltSidecar,
    Progress,
    ShardJob,
    build_sidecar,
    chosen_splits,
    shard_result,
)
from siclip_platform.datasets.derived.stage import Pool, Task, TaskOutput, run_stage
from siclip_platform.datasets.importing.given.keys import DatasetKeys, key_hash
from siclip_platform.datasets.importing.given.rows import (
    FORMATS,
    BadRow,
    CaptionColumns,
    CaptionRow,
    caption_rows,
    check_columns,
    plain_name,
)
from siclip_platform.datasets.importing.sources.patterns import matching
from siclip_platform.datasets.manifest import MANIFEST, Dataset, open_dataset
from siclip_platform.datasets.schema import SYNTHETIC
from siclip_platform.datasets.sidecar import CAPTIONS_SCHEMA, sidecar_folder, write_sidecar_shard
from siclip_platform.storage import as_path, without_credentials
from siclip_platform.storage.atomic import replacing
from siclip_platform.storage.hashing import sha256_of
from siclip_platform.storage.locking import locked

VERSION = "1"  # increase it when the same files give other captions
PIECE_ROWS = 100_000
PIECE_CHARACTERS = 64 * 2**20
READ = ("read", "matched", "foreign", "bad")
WRITTEN = ("images", "with", "without", "captions", "repeated")
FOUND_SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64()),  # position in the chosen splits
        pa.field("texts", pa.list_(pa.string())),
        pa.field("models", pa.list_(pa.string())),
    ]
)


class _Shard(NamedTuple):
    """The first row of a shard in the chosen splits, and the rows of each of its row groups."""

    start: int
    groups: tuple[int, ...]


def captions_from_files(
    folder: Path,
    name: str,
    files: Sequence[str],
    wanted: CaptionColumns,
    *,
    splits: Sequence[str] = (),
    progress: Progress | None = None,
) -> BuiltSidecar:
    """Write a caption set from files. See `build_sidecar` for interrupted and repeated calls.

    A row of the dataset gets the captions of all rows with its key, equal ones once; a row without any gets none, and
    training then uses its own. The counts: rows of the files that were ``read``, have a key of the dataset
    (``matched``) or not (``foreign``), or have no key or no caption (``bad``); images of the dataset (``images``)
    ``with`` and ``without`` captions, ``captions`` written, and further rows of an image's key (``repeated``).

    Args:
        folder: of the dataset.
        name: of the caption set.
        files: paths or URIs.
        wanted: what is read of them.
        splits: whose rows are matched; default: all.
        progress: called after every shard.

    Raises:
        UserError: the dataset or a file cannot be read, a column is missing, or no row matches.
    """
    dataset = open_dataset(folder)
    target = sidecar_folder(dataset.local_folder, "captions", name)
    chosen = chosen_splits(dataset, splits)
    for file in files:
        check_columns(file, wanted)
    sources = [{"name": as_path(file).name, "sha256": sha256_of(as_path(file))} for file in files]
    recipe = {"files": sources, **wanted.model_dump(mode="json")}
    try:
        target.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {target.parent}: {error}") from None
    found = target.parent / f".{name}.found"
    with locked(target.parent / f".{name}.found.lock"):
        arguments: tuple[Any, ...] = (found, [], {}, {})
        if not (target / MANIFEST).exists():
            keys = DatasetKeys(dataset, chosen, wanted.key)
            keys.check(dataset, wanted.key)
            plan = {"version": VERSION, "dataset": dataset.hash, "splits": chosen, **recipe}
            tasks = [Task(name=f"{number:05d}", payload={"file": file}) for number, file in enumerate(files)]
            records = run_stage(found, plan, tasks, _Match(keys, wanted), pool=Pool(here=True))
            totals = Counter(dict.fromkeys(READ, 0))
            for record in records:
                totals.update(record.result["counts"])
            if not totals["matched"]:
                shutil.rmtree(found, ignore_errors=True)
                raise _no_match(files, [record.result for record in records], keys, dataset, wanted)
            pieces = [file.path for record in records for file in record.files]
            arguments = (found, pieces, _shards(dataset, chosen), dict(totals))
        pool = Pool(arguments=arguments, here=True)
        built = build_sidecar(dataset, "captions", name, VERSION, recipe, chosen, _Write, pool, progress)
        shutil.rmtree(found, ignore_errors=True)
    return built


def expand_files(names: Sequence[str]) -> list[str]:
    """Return the files that paths, folders and glob patterns name, each once.

    Raises:
        UserError: one of them names no file with captions.
    """
    files: list[str] = []
    for name in names:
        folder, found = matching(name)
        # A single file may have any extension: its reader explains what is wrong with it.
        chosen = [file for file, _ in found if len(found) == 1 or plain_name(file).endswith(FORMATS)]
        if not chosen:
            raise UserError(f"{without_credentials(name)} contains none of {', '.join(FORMATS)}: name other files")
        files += [str(folder / file) for file in chosen]
    return list(dict.fromkeys(files))


def _shards(dataset: Dataset, splits: Sequence[str]) -> dict[str, _Shard]:
    shards, start = {}, 0
    for split in splits:
        for entry, groups in zip(dataset.entries(split), dataset.groups(split), strict=True):
            shards[entry.path] = _Shard(start, groups)
            start += entry.rows
    return shards


def _no_match(
    files: Sequence[str],
    results: Sequence[Mapping[str, Any]],
    keys: DatasetKeys,
    dataset: Dataset,
    wanted: CaptionColumns,
) -> UserError:
    read = sum(result["counts"]["read"] for result in results)
    seen = next(((file, r["key"]) for file, r in zip(files, results, strict=True) if r["key"]), None)
    bad = next(((file, r["bad"]) for file, r in zip(files, results, strict=True) if r["bad"]), None)
    if seen is not None:
        file, (number, key) = seen
        first = f"row {number} of {without_credentials(file)} has {key!r}"
    elif bad is not None:
        first = f"row {bad[1][0]} of {without_credentials(bad[0])} cannot be used: {bad[1][1]}"
    else:
        first = "the files have no rows"
    return UserError(
        f"none of {read:,} rows has a key of the dataset: {first}, and the first {wanted.key} of {dataset.folder} is "
        f"{keys.example!r}. Name the column with these keys with --key-column, or match by another --key"
    )


class _Match:
    """Reads a file and keeps what belongs to rows of the dataset, in pieces that are sorted by these rows."""

    def __init__(self, keys: DatasetKeys, wanted: CaptionColumns) -> None:
        self.keys = keys
        self.wanted = wanted

    def __call__(self, folder: Path, task: Task) -> TaskOutput:
        counts: Counter[str] = Counter(dict.fromkeys(READ, 0))
        files: list[str] = []
        key = bad = None
        rows: list[CaptionRow] = []
        size = 0
        # None: the end of the file.
        for row in chain(caption_rows(task.payload["file"], self.wanted), [None]):
            if isinstance(row, BadRow):
                counts["read"] += 1
                counts["bad"] += 1
                bad = bad or [row.number, row.problem]
                continue
            if row is not None:
                counts["read"] += 1
                key = key or [row.number, row.key]
                rows.append(row)
                size += sum(len(text) for text, _ in row.captions)
            if rows and (row is None or len(rows) == PIECE_ROWS or size > PIECE_CHARACTERS):
                name = f"found-{task.name}-{len(files):05d}.arrow"
                matched = self._piece(rows, folder / name)
                counts["matched"] += matched
                counts["foreign"] += len(rows) - matched
                files.append(name)
                rows, size = [], 0
        return TaskOutput(files=tuple(files), result={"counts": dict(counts), "key": key, "bad": bad})

    def _piece(self, rows: Sequence[CaptionRow], path: Path) -> int:
        """Write the captions that belong to rows of the dataset; return how many of ``rows`` do."""
        index, positions = self.keys.find([key_hash(row.key) for row in rows])
        # Stable: the captions of a row keep the order of the file.
        order = np.argsort(positions, kind="stable")
        chosen = [rows[number].captions for number in index[order].tolist()]
        columns = {
            "row": positions[order],
            "texts": [[text for text, _ in captions] for captions in chosen],
            "models": [[model for _, model in captions] for captions in chosen],
        }
        with replacing(path) as temporary, pa.ipc.new_file(temporary, FOUND_SCHEMA) as writer:
            writer.write_table(pa.table(columns, FOUND_SCHEMA))
        return len(np.unique(index))


class _Write:
    """Writes a shard of the caption set."""

    def __init__(
        self, folder: Path, pieces: Sequence[str], shards: Mapping[str, _Shard], totals: Mapping[str, int]
    ) -> None:
        # Mapped, not read: a shard needs a small part of each.
        tables = [pa.ipc.open_file(pa.memory_map(str(folder / name))).read_all() for name in pieces]
        self.pieces = [(np.asarray(table["row"]), table) for table in tables]
        self.shards = shards
        self.totals = totals

    def __call__(self, folder: Path, task: Task) -> TaskOutput:
        job = ShardJob.model_validate(task.payload)
        counts: Counter[str] = Counter(dict.fromkeys(WRITTEN, 0))
        entry = write_sidecar_shard(folder / job.path, self._tables(job.path, counts), CAPTIONS_SCHEMA)
        # The counts of the files are those of the whole set: the first of its shards has them.
        if job.path == next(iter(self.shards)):
            counts.update(self.totals)
        return TaskOutput(files=(job.path,), result=shard_result(entry, counts))

    def _tables(self, path: str, counts: Counter[str]) -> Iterator[pa.Table]:
        start, groups = self.shards[path]
        for size in groups:
            captions: list[dict[tuple[str, str], None]] = [{} for _ in range(size)]
            found = np.zeros(size, np.int64)
            for rows, table in self.pieces:
                first, last = (int(at) for at in np.searchsorted(rows, [start, start + size]))
                for item in table.slice(first, last - first).to_pylist():
                    found[item["row"] - start] += 1
                    captions[item["row"] - start].update(
                        dict.fromkeys(zip(item["texts"], item["models"], strict=True))
                    )
            counts["images"] += size
            counts["with"] += int((found > 0).sum())
            counts["without"] += int((found == 0).sum())
            counts["repeated"] += int(np.maximum(found - 1, 0).sum())
            counts["captions"] += sum(map(len, captions))
            listed = [
                [{"text": text, "source": SYNTHETIC, "model": model} for text, model in own] for own in captions
            ]
            yield pa.table({"captions": pa.array(listed, CAPTIONS_SCHEMA.field("captions").type)}, CAPTIONS_SCHEMA)
            start += size
