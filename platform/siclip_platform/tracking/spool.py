"""What is to be sent to MLflow, in order, in a file: nothing is lost while the server is away or we are killed."""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from siclip.errors import UserError

FILE = "spool.db"
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
    """One thing to tell MLflow. ``tried``: it was sent before, and may have arrived."""

    seq: int
    run: str
    op: Op
    payload: dict[str, Any]
    tried: bool


class Spool:
    """Events in the order of their making, and the MLflow run id of each of our run keys. Threads may share it.

    A spool belongs to one process at a time. Without a folder it lives in memory.

    Raises:
        UserError: another process has it open.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._guard: int | None = None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._guard = _only_one(folder)
        self._lock = threading.RLock()
        self._data = sqlite3.connect(folder / FILE if folder else ":memory:", check_same_thread=False, timeout=60)
        self._data.execute("PRAGMA journal_mode=WAL")
        self._data.execute("PRAGMA synchronous=NORMAL")
        self._data.executescript(_SCHEMA)
        self.arrived = threading.Event()

    def _do(self, statement: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        with self._lock, self._data:
            return self._data.execute(statement, values).fetchall()

    def describe(self, **meta: str) -> None:
        """Keep what a later sender needs to know: the store's URI, the experiment."""
        for name, value in meta.items():
            self._do("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))

    def meta(self, name: str) -> str | None:
        rows = self._do("SELECT value FROM meta WHERE name = ?", (name,))
        return rows[0][0] if rows else None

    def put(self, run: str, *events: tuple[Op, Mapping[str, Any]]) -> None:
        """Add events of a run, all or none of them."""
        with self._lock, self._data:
            self._insert(run, events)
        self.arrived.set()

    def begin(self, key: str, *events: tuple[Op, Mapping[str, Any]]) -> bool:
        """Make a run key known, with its first events; False and nothing if it was known already."""
        with self._lock, self._data:
            if self._data.execute("SELECT 1 FROM runs WHERE key = ?", (key,)).fetchall():
                return False
            self._data.execute("INSERT INTO runs VALUES (?, NULL)", (key,))
            self._insert(key, events)
        self.arrived.set()
        return True

    def _insert(self, run: str, events: Iterable[tuple[Op, Mapping[str, Any]]]) -> None:
        rows = [(run, op, json.dumps(payload)) for op, payload in events]
        self._data.executemany("INSERT INTO events (run, op, payload) VALUES (?, ?, ?)", rows)

    def knows(self, key: str) -> bool:
        """Whether a run was begun by this key."""
        return bool(self._do("SELECT 1 FROM runs WHERE key = ?", (key,)))

    def run_id(self, key: str) -> str | None:
        rows = self._do("SELECT run_id FROM runs WHERE key = ?", (key,))
        return rows[0][0] if rows else None

    def next(self) -> Event | None:
        """The first event that was neither sent nor refused."""
        rows = self._do("SELECT seq, run, op, payload, tried FROM events WHERE sent = 0 ORDER BY seq LIMIT 1")
        if not rows:
            return None
        seq, run, op, payload, tried = rows[0]
        return Event(seq, run, op, json.loads(payload), bool(tried))

    def trying(self, event: Event) -> None:
        self._do("UPDATE events SET tried = 1 WHERE seq = ?", (event.seq,))

    def created(self, event: Event, run_id: str) -> None:
        """The run of a ``create`` event exists, by this id."""
        with self._lock, self._data:
            self._data.execute("UPDATE runs SET run_id = ? WHERE key = ?", (run_id, event.run))
            self._data.execute("UPDATE events SET sent = 1 WHERE seq = ?", (event.seq,))

    def sent(self, event: Event) -> None:
        self._do("UPDATE events SET sent = 1 WHERE seq = ?", (event.seq,))

    def refused(self, event: Event, problem: str) -> None:
        """MLflow will never take this one: set aside, kept with the reason."""
        self._do("UPDATE events SET sent = 2, problem = ? WHERE seq = ?", (problem, event.seq))

    def waiting(self) -> int:
        return int(self._do("SELECT COUNT(*) FROM events WHERE sent = 0")[0][0])

    def problems(self) -> list[str]:
        """Why events were refused."""
        return [f"{op}: {problem}" for op, problem in self._do("SELECT op, problem FROM events WHERE sent = 2")]

    def last_steps(self, key: str) -> dict[str, int]:
        """The last step of each metric of a run, sent or not."""
        steps: dict[str, int] = {}
        for (payload,) in self._do("SELECT payload FROM events WHERE run = ? AND op = 'metrics'", (key,)):
            for name, _, _, step in json.loads(payload)["metrics"]:
                steps[name] = max(step, steps.get(name, step))
        return steps

    def sizes(self, key: str) -> dict[tuple[str, str], int]:
        """How many bytes the files of a run have, sent or not, by what was to be made of them and their path."""
        files = "SELECT op, payload FROM events WHERE run = ? AND op IN ('artifact', 'model') ORDER BY seq"
        found = [(op, json.loads(payload)) for op, payload in self._do(files, (key,))]
        paths = {"artifact": "path", "model": "checkpoint"}
        return {(op, what[paths[op]]): what["bytes"] for op, what in found if "bytes" in what}

    def ended(self, key: str) -> str | None:
        """The status that a run was closed with, None while it is open."""
        wanted = "run = ? AND op IN ('end', 'reopen') ORDER BY seq DESC LIMIT 1"
        rows = self._do(f"SELECT op, payload FROM events WHERE {wanted}", (key,))
        return str(json.loads(rows[0][1])["status"]) if rows and rows[0][0] == "end" else None

    def close(self) -> None:
        with self._lock:
            self._data.close()
            if self._guard is not None:
                os.close(self._guard)
                self._guard = None


def _only_one(folder: Path) -> int:
    guard = os.open(folder / f"{FILE}.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(guard)
        raise UserError(
            f"another process is writing to {folder}: wait for it, or end it, before this is started again"
        ) from None
    return guard
