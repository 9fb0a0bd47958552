"""The study's own record: an append-only file of what happened to each trial, readable after a kill at any moment."""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from siclip.errors import UserError
from siclip_platform.storage.full_disk import when_there_is_space

TrialState = Literal["completed", "pruned", "failed"]
FILE = "journal.jsonl"
log = logging.getLogger(__name__)


@dataclass
class Entry:
    """One trial in the journal.

    Attributes:
        name: the trial's name, with its number in the order of suggestion.
        values: its setting. A population member's changes when it copies a parent.
        attempts: the ids that Ray Tune gave the trial, one per start.
        results: (step, mean metrics, metrics per seed) in order.
        state: None until the trial ends.
        steps: the last step, once the trial has ended.
        seconds: training seconds of all its seed runs, once the trial has ended.
        reason: why it did not complete.
        outside: it failed for a reason outside its recipe, such as a lost machine; a resumed study runs it again.
        losses: how often its process was lost since it was suggested or a resumed study began to run it again.
        reopened: it had ended for a reason outside its recipe, and a resumed study runs it again.
        told: the searcher was told how the trial ended.
        parents: (step, member) for each member whose training state this one copied.
        lineage: (step, member) for each copy that its present training state descends from.
    """

    name: str
    values: dict[str, Any]
    attempts: list[str] = field(default_factory=list)
    results: list[tuple[int, dict[str, float], dict[str, dict[str, float]]]] = field(default_factory=list)
    state: TrialState | None = None
    steps: int = 0
    seconds: float = 0.0
    reason: str = ""
    outside: bool = False
    losses: int = 0
    reopened: bool = False
    told: bool = False
    parents: list[tuple[int, str]] = field(default_factory=list)
    lineage: list[tuple[int, str]] = field(default_factory=list)

    @property
    def number(self) -> int:
        """Its position in the order of suggestion."""
        return int(self.name.rpartition("-")[2])

    @property
    def last(self) -> dict[str, float]:
        """The newest mean metrics; empty before the first result."""
        return self.results[-1][1] if self.results else {}

    @property
    def step(self) -> int:
        """The step of the newest result; 0 before the first."""
        return self.results[-1][0] if self.results else 0


def trial_name(number: int) -> str:
    return f"trial-{number:03d}"


def _is_event(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


class Journal:
    """The entries of a study by trial name, in the order of suggestion.

    Every change is a line of ``folder/journal.jsonl``. A last line that a kill, a full disk or a power cut spoiled is
    cut off and reported when the journal is opened again.

    Attributes:
        entries: the trials by name.
        sequence: (trial, index of its result) in the order in which results arrived.
        generations: the steps at which a population's generations ended.

    Raises:
        UserError: a line before the last cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / FILE
        self.entries: dict[str, Entry] = {}
        self.sequence: list[tuple[str, int]] = []
        self.generations: list[int] = []
        self._in_flight: dict[str, Entry] = {}
        for event in self._read():
            self._apply(event)
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def _read(self) -> Iterator[dict[str, Any]]:
        if not self.path.is_file():
            return
        data = self.path.read_bytes()
        # Only the last line can be spoiled: each line is one write to a file opened for appending, and a write that
        # fails is undone.
        lines = data.split(b"\n")
        start = len(data)
        if lines[-1] or not _is_event(lines[-2] if len(lines) > 1 else b"{}"):
            kept = lines[:-1] if lines[-1] else lines[:-2]
            start = sum(len(line) + 1 for line in kept)
            os.truncate(self.path, start)
            log.warning("%s: its last line was incomplete and is cut off (%d bytes)", self.path, len(data) - start)
        for number, line in enumerate(data[:start].split(b"\n")[:-1], start=1):
            try:
                yield json.loads(line)
            except ValueError as error:
                raise UserError(
                    f"{self.path}:{number}: not a line of a study's journal ({error}); restore the file from a copy, "
                    "or start a new study: finished trainings are reused from MLflow"
                ) from None

    def events(self) -> list[dict[str, Any]]:
        """Everything that happened, in order."""
        return list(self._read())

    def _apply(self, event: Mapping[str, Any]) -> None:
        name = event.get("trial", "")
        match event["event"]:
            case "suggested":
                self.entries[name] = self._in_flight[name] = Entry(name, event["values"])
            case "started":
                self.entries[name].attempts.append(event["tune"])
            case "result":
                entry = self.entries[name]
                if not entry.results or event["step"] > entry.step:
                    entry.results.append((event["step"], event["metrics"], event["seeds"]))
                    self.sequence.append((name, len(entry.results) - 1))
            case "ended":
                entry = self.entries[name]
                entry.state, entry.steps = event["state"], event["steps"]
                entry.seconds, entry.reason = event["seconds"], event["reason"]
                entry.outside = event.get("outside", False)
                self._in_flight.pop(name, None)
            case "lost":
                self.entries[name].losses += 1
            case "reopened":
                entry = self._in_flight[name] = self.entries[name]
                entry.state, entry.reason, entry.outside, entry.losses = None, "", False, 0
                entry.reopened = True
            case "told":
                self.entries[name].told = True
            # The name on disk is older than the word generation; journals of earlier versions stay readable.
            case "turned":
                self.generations.append(event["step"])
                for child, (parent, values) in event["changes"].items():
                    copy, entry = (event["step"], parent), self.entries[child]
                    entry.values = values
                    entry.parents.append(copy)
                    entry.lineage = [*self.entries[parent].lineage, copy]

    def _write(self, event: str, durable: bool = False, **what: Any) -> None:
        record = {"event": event, **what}
        line = (json.dumps(record) + "\n").encode()
        when_there_is_space(lambda: self._append(line), self.path)
        # What other stores are told next must survive a power cut; a lost result is only trained again.
        if durable:
            os.fsync(self._file)
        self._apply(record)

    def _append(self, line: bytes) -> None:
        """Append a whole line, or nothing: on a disk that becomes full a write ends in the middle of the line."""
        before = os.fstat(self._file).st_size
        try:
            written = os.write(self._file, line)
            if written < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        except OSError:
            os.ftruncate(self._file, before)
            raise

    def suggested(self, trial: str, values: Mapping[str, Any]) -> None:
        self._write("suggested", trial=trial, values=dict(values))

    def started(self, trial: str, tune_id: str) -> None:
        self._write("started", trial=trial, tune=tune_id)

    def result(
        self, trial: str, step: int, metrics: Mapping[str, float], seeds: Mapping[str, Mapping[str, float]]
    ) -> None:
        """A step that is reported again keeps its first metrics."""
        each = {seed: dict(values) for seed, values in seeds.items()}
        self._write("result", trial=trial, step=step, metrics=dict(metrics), seeds=each)

    def ended(
        self, trial: str, state: TrialState, steps: int, seconds: float, reason: str = "", outside: bool = False
    ) -> None:
        more = {"outside": True} if outside else {}
        self._write(
            "ended", trial=trial, durable=True, state=state, steps=steps, seconds=seconds, reason=reason, **more
        )

    def lost(self, trial: str, reason: str) -> None:
        """The process of a trial was lost; the trial is run on."""
        self._write("lost", trial=trial, reason=reason)

    def reopened(self, trial: str) -> None:
        """A trial that has ended is run on."""
        self._write("reopened", trial=trial)

    def told(self, trial: str) -> None:
        self._write("told", trial=trial)

    def generation_ended(self, step: int, changes: Mapping[str, tuple[str, Mapping[str, Any]]]) -> None:
        """The end of a generation in one line: member → the parent that it copies, and its values after ``step``."""
        plain = {child: [parent, dict(values)] for child, (parent, values) in changes.items()}
        self._write("turned", durable=True, step=step, changes=plain)

    def finished(self) -> list[Entry]:
        return [entry for entry in self.entries.values() if entry.state]

    @property
    def finished_count(self) -> int:
        return len(self.entries) - len(self._in_flight)

    def in_flight(self) -> list[Entry]:
        return list(self._in_flight.values())

    def close(self) -> None:
        os.close(self._file)
