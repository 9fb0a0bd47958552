"""A stage: tasks that Ray runs, each with files and a record, so that an interrupted run resumes.

Until `clear_stage` the stage's folder contains ``.stage.json`` (the plan) and ``.done/NAME.json`` (one record per
finished task, written after the task's files). A stage that was killed and is started again repeats only the tasks
without a record: at most one per worker.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

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
    """One unit of work.

    Attributes:
        name: unique within the stage; the name of its record.
        payload: JSON values only. Payload and plan together determine the result.
    """

    name: str = Field(pattern="^[A-Za-z0-9][A-Za-z0-9._-]*$")
    payload: dict[str, Any]

    @property
    def digest(self) -> str:
        return canonical_hash(self.payload)


class TaskOutput(Config):
    """What a task returns.

    Attributes:
        files: paths of the files that it wrote, relative to the stage's folder.
        result: JSON values for the caller of the stage.
    """

    files: tuple[str, ...] = ()
    result: dict[str, Any] = Field(default_factory=dict)


class OutputFile(Config):
    """A file that a finished task wrote."""

    path: str
    bytes: int
    sha256: str


class Record(Config):
    """A finished task.

    Attributes:
        task: its name.
        payload: the digest of its payload.
        files: what it wrote.
        result: as in `TaskOutput`.
    """

    task: str
    payload: str
    files: tuple[OutputFile, ...]
    result: dict[str, Any]


Work = Callable[[Path, Task], TaskOutput]
"""Writes a task's files into the folder with `storage.atomic.replacing`; equal tasks give equal bytes."""


@dataclass(frozen=True)
class Pool:
    """Where tasks run.

    Attributes:
        cpus: of one Ray task or actor.
        gpus: of one Ray task or actor.
        actors: number of actors if the work is a class.
        arguments: of that class.
        here: run in this process, one task after the other, without Ray.
    """

    cpus: float = 1.0
    gpus: float = 0.0
    actors: int = 0
    arguments: tuple[Any, ...] = ()
    here: bool = False


@runtime_checkable
class Steps(Protocol):
    """Work that is done in steps, see `siclip_platform.datasets.derived.pipeline`."""

    def here(self, folder: Path, tasks: Sequence[Task]) -> Iterator[Record]: ...
    def on_ray(self, folder: Path, tasks: Sequence[Task]) -> Iterator[Record]: ...


def run_stage(
    folder: Path,
    plan: Mapping[str, Any],
    tasks: Sequence[Task],
    work: Work | type | Steps,
    *,
    pool: Pool | None = None,
    on_record: Callable[[Record], None] | None = None,
) -> list[Record]:
    """Run the tasks that are not finished yet and return the records of all, in the order of ``tasks``.

    Ray must be initialised unless the pool is ``here``; on a cluster every node must see ``folder``. A second caller
    waits for the first. A task whose worker is killed runs again.

    Args:
        folder: receives the files of the tasks, and their records until `clear_stage`.
        plan: JSON values; everything besides the tasks that the result depends on. Stored in the folder.
        tasks: with unique names.
        work: a `Work`, a class whose instances are one, of which ``pool.actors`` are created, or `Steps`.
        pool: where the tasks run; default: a Ray task with one CPU for each.
        on_record: called in this process for every finished task, those of earlier runs first. If it raises, the
            stage stops; finished tasks are kept.

    Raises:
        UserError: the folder cannot be written, contains foreign files or a stage with another plan, or a task
            raised one.
    """
    pool = pool or Pool()
    folder = folder.absolute()
    with _claimed(folder):
        _store_plan(folder, plan)
        records: dict[str, Record] = {}
        for task in tasks:
            found = finished(folder, task)
            if found:
                _add(found, records, on_record)
        missing = [task for task in tasks if task.name not in records]
        # Temporary files are only deleted under the lock, when no other run can be writing them.
        if missing:
            for leftover in folder.rglob(TEMPORARY):
                leftover.unlink(missing_ok=True)
        # A class of steps would match the protocol too.
        if not isinstance(work, type) and isinstance(work, Steps):
            done = work.here(folder, missing) if pool.here else work.on_ray(folder, missing)
        else:
            done = (_run_here if pool.here else _run_on_ray)(folder, missing, work, pool)
        for record in done:
            _add(record, records, on_record)
        return [records[task.name] for task in tasks]


def finished(folder: Path, task: Task) -> Record | None:
    """Return the record of a task if it exists, has this payload, and the files have the recorded sizes."""
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
    """Remove the records and the plan. Call it after writing the manifest that lists the stage's files."""
    shutil.rmtree(folder / DONE, ignore_errors=True)
    for name in (PLAN, LOCK):
        (folder / name).unlink(missing_ok=True)


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Hold the folder for one run at a time; refuse a folder with foreign files."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Temporary files of a killed run are not foreign.
        names = {path.name for path in folder.iterdir()} - {path.name for path in folder.glob(TEMPORARY)}
        if names - {DONE, LOCK} and PLAN not in names:
            raise UserError(f"{folder} is not empty and contains no unfinished work: name an empty or a new folder")
        (folder / DONE).mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error}; name a folder that can be written") from None
    with locked(folder / LOCK):
        yield


def _store_plan(folder: Path, plan: Mapping[str, Any]) -> None:
    requested = json.loads(json.dumps(plan))
    path = folder / PLAN
    if path.exists():
        found = json.loads(path.read_text())
        if found == requested:
            return
        keys = sorted(key for key in found.keys() | requested.keys() if found.get(key) != requested.get(key))
        lines = [
            f"  {key}: stored {json.dumps(found.get(key))}, now {json.dumps(requested.get(key))}" for key in keys
        ]
        raise UserError(
            f"{folder} contains unfinished work with other settings:\n" + "\n".join(lines) + "\nUse the stored "
            "settings, name another folder, or delete this one"
        )
    write_text_atomically(path, json.dumps(requested, indent=2, sort_keys=True) + "\n")


def _add(record: Record, records: dict[str, Record], on_record: Callable[[Record], None] | None) -> None:
    records[record.task] = record
    if on_record is not None:
        on_record(record)


def _complete(folder: Path, task: Task, work: Work) -> Record:
    """Run a task and write its record, unless it is finished."""
    # Ray retries a task whose worker died after it had written the record.
    found = finished(folder, task)
    if found:
        return found
    return completed(folder, task, work(folder, task))


def completed(folder: Path, task: Task, output: TaskOutput) -> Record:
    """Write and return the record of a task whose files are written."""
    files = tuple(
        OutputFile(path=name, bytes=(folder / name).stat().st_size, sha256=sha256_of(folder / name))
        for name in output.files
    )
    # The record comes last: it declares the files complete.
    record = Record(task=task.name, payload=task.digest, files=files, result=output.result)
    write_text_atomically(folder / DONE / f"{task.name}.json", record.model_dump_json())
    return record


def _run_here(folder: Path, tasks: Sequence[Task], work: Work | type, pool: Pool) -> Iterator[Record]:
    do: Work = work(*pool.arguments) if isinstance(work, type) and tasks else work
    for task in tasks:
        yield _complete(folder, task, do)


class _Worker:
    """A task or an actor of Ray Data: maps a row with a task to a row with its record or its error."""

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
    # One block per task: Ray schedules, retries and balances blocks.
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
