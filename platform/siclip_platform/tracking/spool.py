"""A queue in a file of everything to be sent to MLflow, in order.

Nothing is lost while the server does not answer or when the driver is killed.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from filelock import FileLock

from siclip.errors import UserError
from siclip_platform.storage.full_disk import when_there_is_space
from siclip_platform.storage.locking import claim

FILE = "spool.db"
T = TypeVar("T")
Op = Literal["create", "params", "metrics", "tags", "inputs", "artifact", "model", "end", "reopen"]
_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT);
CREATE TABLE IF NOT EXISTS runs (key TEXT PRIMARY KEY, run_id TEXT);
CREATE TABLE IF NOT EXISTS events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, run TEXT, op TEXT, payload TEXT,
    tried INTEGER DEFAULT 0, sent INTEGER DEFAULT 0, problem TEXT);
CREATE INDEX IF NOT EXISTS unsent ON events (sent, seq);
"""


@dataclass(frozen=True)
class Event:
    """One operation for MLflow.

    Attributes:
        seq: its position in the queue.
        run: the key of the run that it changes.
        op: the operation.
        payload: its arguments, as JSON values.
        tried: it was sent before, and may have arrived.
    """

    seq: int
    run: str
    op: Op
    payload: dict[str, Any]
    tried: bool


class Spool:
    """Events in the order in which they were added, and MLflow's run id of each run key. Threads may share a spool.

    Only one process at a time can open a spool. Without a folder it is kept in memory.

    Raises:
        UserError: another process has it open, or the file is damaged.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._guard: FileLock | None = None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._guard = claim(
                folder / f"{FILE}.lock",
                f"another process is writing to {folder}: wait until it ends, or end it, and start this again",
            )
        self._lock = threading.RLock()
        # One connection for all threads: every access takes the lock.
        self._data = sqlite3.connect(folder / FILE if folder else ":memory:", check_same_thread=False, timeout=60)
        self.arrived = threading.Event()
        try:
            self._data.execute("PRAGMA journal_mode=WAL")
            # With a write-ahead log, NORMAL loses no event when the process is killed, only when the machine is.
            self._data.execute("PRAGMA synchronous=NORMAL")
            self._data.executescript(_SCHEMA)
        except sqlite3.DatabaseError as error:
            self.close()
            raise UserError(
                f"{folder}/{FILE} cannot be used ({error}): if it is damaged, move it and the {FILE}-* files beside "
                "it away and resume the study, which finds its runs in MLflow"
            ) from None

    def _do(self, statement: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        return self._change(lambda: self._data.execute(statement, values).fetchall())

    def _change(self, write: Callable[[], T]) -> T:
        """Do everything in ``write`` or nothing, when the disk has space."""

        def whole() -> T:
            with self._lock, self._data:
                return write()

        return when_there_is_space(whole, self.folder or "the spool")

    def describe(self, **meta: str) -> None:
        """Store what a later sender needs: the store's URI, the experiment."""
        for name, value in meta.items():
            self._do("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))

    def meta(self, name: str) -> str | None:
        """A value that `describe` stored."""
        rows = self._do("SELECT value FROM meta WHERE name = ?", (name,))
        return rows[0][0] if rows else None

    def put(self, run: str, *events: tuple[Op, Mapping[str, Any]]) -> None:
        """Add events of a run, in one transaction."""
        self._change(lambda: self._insert(run, events))
        self.arrived.set()

    def begin(self, key: str, *events: tuple[Op, Mapping[str, Any]]) -> bool:
        """Register a run key with its first events. Returns False, and changes nothing, if the key is known."""

        def write() -> bool:
            if self._data.execute("SELECT 1 FROM runs WHERE key = ?", (key,)).fetchall():
                return False
            self._data.execute("INSERT INTO runs VALUES (?, NULL)", (key,))
            self._insert(key, events)
            return True

        begun = self._change(write)
        self.arrived.set()
        return begun

    def adopt(self, key: str, run_id: str, *events: tuple[Op, Mapping[str, Any]]) -> None:
        """Register a run that MLflow has, with the events that led to it, as sent; a known key is left alone."""

        def write() -> None:
            if not self._data.execute("SELECT 1 FROM runs WHERE key = ?", (key,)).fetchall():
                self._data.execute("INSERT INTO runs VALUES (?, ?)", (key, run_id))
                self._insert(key, events, sent=1)

        self._change(write)

    def _insert(self, run: str, events: Iterable[tuple[Op, Mapping[str, Any]]], sent: int = 0) -> None:
        rows = [(run, op, json.dumps(payload), sent) for op, payload in events]
        self._data.executemany("INSERT INTO events (run, op, payload, sent) VALUES (?, ?, ?, ?)", rows)

    def run_ids(self) -> dict[str, str]:
        """The keys of the runs that MLflow has created, with its ids."""
        return dict(self._do("SELECT key, run_id FROM runs WHERE run_id IS NOT NULL"))

    def send_again(self, keys: Iterable[str]) -> None:
        """Let all events of runs that MLflow has lost be sent again, in their order."""

        def write() -> None:
            for key in keys:
                self._data.execute("UPDATE runs SET run_id = NULL WHERE key = ?", (key,))
                again = "UPDATE events SET sent = 0, problem = NULL, tried = MAX(tried, 1) WHERE run = ?"
                self._data.execute(again, (key,))

        self._change(write)
        self.arrived.set()

    def retry_refused(self) -> None:
        """Let the refused events be sent again, with those that followed in the same run: a tag's last value wins."""
        first = "SELECT run, MIN(seq) FROM events WHERE sent = 2 GROUP BY run"

        def write() -> None:
            for run, seq in self._data.execute(first).fetchall():
                again = "UPDATE events SET sent = 0, problem = NULL WHERE run = ? AND seq >= ?"
                self._data.execute(again, (run, seq))

        self._change(write)
        self.arrived.set()

    def repeated(self, key: str, op: Op) -> list[dict[str, Any]]:
        """The payloads of a run's events of one operation that were sent more than once."""
        rows = self._do("SELECT payload FROM events WHERE run = ? AND op = ? AND tried > 1", (key, op))
        return [json.loads(payload) for (payload,) in rows]

    def knows(self, key: str) -> bool:
        """Whether a run was started with this key."""
        return bool(self._do("SELECT 1 FROM runs WHERE key = ?", (key,)))

    def run_id(self, key: str) -> str | None:
        """MLflow's id of a run; None until the run was created there."""
        rows = self._do("SELECT run_id FROM runs WHERE key = ?", (key,))
        return rows[0][0] if rows else None

    def next(self) -> Event | None:
        """The oldest event that was neither sent nor refused."""
        rows = self._do("SELECT seq, run, op, payload, tried FROM events WHERE sent = 0 ORDER BY seq LIMIT 1")
        if not rows:
            return None
        seq, run, op, payload, tried = rows[0]
        return Event(seq, run, op, json.loads(payload), bool(tried))

    def trying(self, event: Event) -> None:
        """Record that an event is about to be sent: after a kill it may have arrived."""
        self._do("UPDATE events SET tried = tried + 1 WHERE seq = ?", (event.seq,))

    def created(self, event: Event, run_id: str) -> None:
        """Record that a ``create`` event was sent, and MLflow's id of the run."""

        def write() -> None:
            self._data.execute("UPDATE runs SET run_id = ? WHERE key = ?", (run_id, event.run))
            self._data.execute("UPDATE events SET sent = 1 WHERE seq = ?", (event.seq,))

        self._change(write)

    def sent(self, event: Event) -> None:
        self._do("UPDATE events SET sent = 1 WHERE seq = ?", (event.seq,))

    def refused(self, event: Event, problem: str) -> None:
        """Record that MLflow refuses an event; it is kept with the reason until `retry_refused`."""
        self._do("UPDATE events SET sent = 2, problem = ? WHERE seq = ?", (problem, event.seq))

    def waiting(self) -> int:
        """The number of events that were neither sent nor refused."""
        return int(self._do("SELECT COUNT(*) FROM events WHERE sent = 0")[0][0])

    def problems(self) -> list[str]:
        """The refused events, each with the reason."""
        return [f"{op}: {problem}" for op, problem in self._do("SELECT op, problem FROM events WHERE sent = 2")]

    def last_steps(self, key: str) -> dict[str, int]:
        """The last step of each metric of a run, sent or not."""
        steps: dict[str, int] = {}
        for (payload,) in self._do("SELECT payload FROM events WHERE run = ? AND op = 'metrics'", (key,)):
            for name, _, _, step in json.loads(payload)["metrics"]:
                steps[name] = max(step, steps.get(name, step))
        return steps

    def sizes(self, key: str) -> dict[tuple[str, str], int]:
        """Bytes of each file of a run, sent or not, by operation (``artifact`` or ``model``) and path."""
        files = "SELECT op, payload FROM events WHERE run = ? AND op IN ('artifact', 'model') ORDER BY seq"
        found = [(op, json.loads(payload)) for op, payload in self._do(files, (key,))]
        paths = {"artifact": "path", "model": "checkpoint"}
        return {(op, payload[paths[op]]): payload["bytes"] for op, payload in found if "bytes" in payload}

    def ended(self, key: str) -> str | None:
        """The status with which a run was closed; None while it is open.

        A pruned run is ``PRUNED``: MLflow has it as ``KILLED``, but unlike one that was interrupted it has ended.
        """
        last = "SELECT op, payload FROM events WHERE run = ? AND op IN ('end', 'reopen') ORDER BY seq DESC LIMIT 1"
        rows = self._do(last, (key,))
        if not rows or rows[0][0] != "end":
            return None
        end = json.loads(rows[0][1])
        return "PRUNED" if end.get("state") == "pruned" else str(end["status"])

    def close(self) -> None:
        """Close the file and let other processes open it."""
        with self._lock:
            self._data.close()
            if self._guard is not None:
                self._guard.release()
                self._guard = None
