"""A resumable stage: many tasks, each of which makes files whole or not at all, spread over Ray Data.

In the stage's folder lie, until `clear_stage`, ``.stage.json`` (the plan) and ``.done/NAME.json`` (one record per
finished task, written after the task's files). Killed at any point and started again, a stage redoes what has no
record: at most one task per worker.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from siclip.config import Config
from siclip.errors import UserError
from siclip_platform.storage.atomic import TEMPORARY, write_text_atomically
from siclip_platform.storage.hashing import canonical_hash, sha256_of
from siclip_platform.storage.locking import locked

PLAN = ".stage.json"
DONE = ".done"
LOCK = ".stage.lock"


class Task(Config):
    """One unit of work. ``payload`` holds JSON values only and, with the plan, says everything about the result."""

    name: str = Field(pattern="^[A-Za-z0-9][A-Za-z0-9._-]*$")
    payload: dict[str, Any]

    @property
    def digest(self) -> str:
        return canonical_hash(self.payload)


class Made(Config):
    """What a task returns: files that it made, relative to the stage's folder, and what else is to be known."""

    files: tuple[str, ...] = ()
    result: dict[str, Any] = Field(default_factory=dict)


class MadeFile(Config):
    path: str
    bytes: int
    sha256: str


class Record(Config):
    """A finished task: its name, the digest of its payload, its files and its result (JSON values)."""

    task: str
    payload: str
    files: tuple[MadeFile, ...]
    result: dict[str, Any]


Work = Callable[[Path, Task], Made]
"""Writes a task's files into the folder with `storage.atomic.replacing`; equal tasks give equal bytes."""


@dataclass(frozen=True)
class Pool:
    """Where tasks run: Ray tasks; ``actors`` of them where ``work`` is a class, made with ``arguments``; or here.

    ``cpus`` and ``gpus`` are those of one task or actor. ``here``: in this process, one task after the other.
    """

    cpus: float = 1.0
    gpus: float = 0.0
    actors: int = 0
    arguments: tuple[Any, ...] = ()
    here: bool = False


def run_stage(
    folder: Path,
    plan: Mapping[str, Any],
    tasks: Sequence[Task],
    work: Work | type,
    *,
    pool: Pool | None = None,
    on_record: Callable[[Record], None] | None = None,
) -> list[Record]:
    """Run the tasks that are not finished yet; the records of all, in the order of ``tasks``.

    Ray must be initialised unless the pool is ``here``; on a cluster every node must see ``folder``. A second caller
    waits for the first. A task whose worker is killed runs again.

    Args:
        plan: JSON values; what the result depends on beside the tasks. Kept in the folder.
        work: a `Work`, or a class whose instances are one (then ``pool.actors`` of them are made).
        on_record: called in this process for every finished task, those of earlier runs first. When it raises, the
            stage stops and keeps what is done.

    Raises:
        UserError: the folder cannot be written, holds foreign files or a stage with another plan, or a task raised
            one.
    """
    pool = pool or Pool()
    folder = folder.absolute()
    with _claimed(folder):
        _keep_plan(folder, plan)
        records: dict[str, Record] = {}
        for task in tasks:
            found = finished(folder, task)
            if found:
                _take(found, records, on_record)
        missing = [task for task in tasks if task.name not in records]
        if missing:
            for leftover in folder.rglob(TEMPORARY):
                leftover.unlink(missing_ok=True)
        run = _run_here if pool.here else _run_on_ray
        for record in run(folder, missing, work, pool):
            _take(record, records, on_record)
        return [records[task.name] for task in tasks]


def finished(folder: Path, task: Task) -> Record | None:
    """The record of a task, if it is there, of this payload, and its files have the sizes that it says."""
    try:
        record = Record.model_validate_json((folder / DONE / f"{task.name}.json").read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
    if record.payload != task.digest:
        return None
    for file in record.files:
        path = folder / file.path
        if not path.is_file() or path.stat().st_size != file.bytes:
            return None
    return record


def clear_stage(folder: Path) -> None:
    """Remove the records and the plan; call it when what lists the stage's files has been written."""
    shutil.rmtree(folder / DONE, ignore_errors=True)
    for name in (PLAN, LOCK):
        (folder / name).unlink(missing_ok=True)


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Hold the folder for one run at a time; refuse what is foreign."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = {path.name for path in folder.iterdir()}
        names -= {
            name for name in names if name.startswith(".") and name.endswith(".tmp")
        }  # of a run that was killed
        if names - {DONE, LOCK} and PLAN not in names:
            raise UserError(f"{folder} is not empty and holds no unfinished work: name an empty or a new folder")
        (folder / DONE).mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error}; name a folder that can be written") from None
    with locked(folder / LOCK):
        yield


def _keep_plan(folder: Path, plan: Mapping[str, Any]) -> None:
    wanted = json.loads(json.dumps(plan))
    path = folder / PLAN
    if path.exists():
        found = json.loads(path.read_text())
        if found == wanted:
            return
        keys = sorted(key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key))
        lines = [f"  {key}: there {json.dumps(found.get(key))}, now {json.dumps(wanted.get(key))}" for key in keys]
        raise UserError(
            f"{folder} holds unfinished work with other settings:\n" + "\n".join(lines) + "\nGo on with the "
            "settings that are there, name another folder, or delete this one"
        )
    write_text_atomically(path, json.dumps(wanted, indent=2, sort_keys=True) + "\n")


def _take(record: Record, records: dict[str, Record], on_record: Callable[[Record], None] | None) -> None:
    records[record.task] = record
    if on_record is not None:
        on_record(record)


def _complete(folder: Path, task: Task, work: Work) -> Record:
    """Run a task unless it is finished (a retry may come after the record), and write its record."""
    found = finished(folder, task)
    if found:
        return found
    made = work(folder, task)
    files = tuple(
        MadeFile(path=name, bytes=(folder / name).stat().st_size, sha256=sha256_of(folder / name))
        for name in made.files
    )
    record = Record(task=task.name, payload=task.digest, files=files, result=made.result)
    write_text_atomically(folder / DONE / f"{task.name}.json", record.model_dump_json())
    return record


def _run_here(folder: Path, tasks: Sequence[Task], work: Work | type, pool: Pool) -> Iterator[Record]:
    do: Work = work(*pool.arguments) if isinstance(work, type) and tasks else work
    for task in tasks:
        yield _complete(folder, task, do)


class _Worker:
    """A task or an actor of Ray Data: takes a row with a task, returns a row with its record or its error."""

    def __init__(self, folder: str, work: Work | type, arguments: tuple[Any, ...]) -> None:
        self.folder = Path(folder)
        self.work: Work = work(*arguments) if isinstance(work, type) else work

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            record = _complete(self.folder, Task.model_validate_json(row["task"]), self.work)
        except UserError as error:
            return {"record": "", "error": str(error)}
        return {"record": record.model_dump_json(), "error": ""}


def _run_on_ray(folder: Path, tasks: Sequence[Task], work: Work | type, pool: Pool) -> Iterator[Record]:
    if not tasks:
        return
    import ray.data

    items = [{"task": task.model_dump_json()} for task in tasks]
    rows = ray.data.from_items(items, override_num_blocks=len(items))
    if isinstance(work, type):
        done = rows.map(
            _Worker,
            fn_constructor_args=(str(folder), work, pool.arguments),
            compute=ray.data.ActorPoolStrategy(size=min(max(pool.actors, 1), len(items))),
            num_cpus=pool.cpus,
            num_gpus=pool.gpus,
        )
    else:
        done = rows.map(_Worker(str(folder), work, ()).__call__, num_cpus=pool.cpus, num_gpus=pool.gpus)
    yield from _records(done.iter_rows())


def _records(rows: Iterable[dict[str, Any]]) -> Iterator[Record]:
    for row in rows:
        if row["error"]:
            raise UserError(row["error"])
        yield Record.model_validate_json(row["record"])
