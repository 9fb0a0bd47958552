"""Runs as the rest of the platform sees them: begun, logged to and finished without waiting for MLflow."""

from __future__ import annotations

import math
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from siclip.errors import UserError
from siclip_platform.metrics import stored_key
from siclip_platform.storage import AnyPath
from siclip_platform.tracking.models import model_payload
from siclip_platform.tracking.sender import Sender
from siclip_platform.tracking.spool import Op, Spool
from siclip_platform.tracking.store import (
    EXPERIMENT,
    artifact_location,
    check_tracking,
    git_commit,
    names_in,
    open_store,
    without_password,
)

RunKind = Literal["study", "trial", "seed", "teacher", "best", "control", "confirm", "train", "evaluation"]
RunState = Literal["completed", "pruned", "failed", "interrupted"]
MAX_METRICS, MAX_PARAMS = 1000, 100  # MLflow's limits for one batch
MAX_PARAM_LENGTH = 6000
BYTES = "cost/artifact_bytes"
_STATUS = {"completed": "FINISHED", "pruned": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}


class TrackedRun:
    """One MLflow run. Step metrics are held back and spooled in batches; several threads may log.

    A run that is begun again, after a restart, takes no figure of a step that it has already.
    """

    def __init__(self, tracker: Tracker, key: str, known: bool = False) -> None:
        """``known``: the run was begun before."""
        self.known = known
        self.tracker = tracker
        self.key = key
        self._spool = tracker.spool
        self._last = self._spool.last_steps(key)
        self._held: list[tuple[str, float, int, int]] = []
        self._lock = threading.Lock()
        self._sizes = self._spool.sizes(key)

    @property
    def run_id(self) -> str:
        """MLflow's id; waits until the run exists there.

        Raises:
            UserError: the store does not answer.
        """
        return self.tracker.run_id(self.key)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Figures of a step; spooled once a few hundred have come together, at `flush` or when the run ends."""
        with self._lock:
            self._hold(step, metrics)

    def _hold(self, step: int, metrics: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        for name, value in metrics.items():
            key = stored_key(name)
            if step > self._last.get(key, -1):
                self._last[key] = step
                self._held.append((key, float(value), now, step))
        if len(self._held) >= MAX_METRICS // 2:
            self._put()

    def flush(self) -> None:
        """Put what is held into the spool."""
        with self._lock:
            self._put()

    def _put(self) -> None:
        while self._held:
            batch, self._held = self._held[:MAX_METRICS], self._held[MAX_METRICS:]
            self._spool.put(self.key, ("metrics", {"metrics": batch}))

    def tag(self, **tags: object) -> None:
        """Set tags, each under the prefix ``siclip.``."""
        self._spool.put(self.key, ("tags", _tags(tags)))

    def dataset(self, name: str, digest: str, folder: AnyPath, profile: str = "", context: str = "train") -> None:
        """Tell which dataset the run reads, as an MLflow dataset."""
        uri = folder.as_uri()
        kind = "local" if isinstance(folder, Path) else uri.partition(":")[0]
        entity = {"name": name, "digest": digest, "source_type": kind, "source": f'{{"uri": "{uri}"}}'}
        what = {"context": context, "dataset": entity | {"profile": profile or None}}
        self._spool.put(self.key, ("inputs", what))

    def artifact(self, path: Path) -> None:
        """A file, which must stay where it is until it is sent."""
        self._spool.put(self.key, ("artifact", {"path": str(path), **self._weigh("artifact", path)}))

    def model(
        self, checkpoint: Path, name: str, *, of: str = "", register: str | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> None:  # fmt: skip
        """A checkpoint as a logged model with a signature; ``register``: its name in the model registry.

        ``of``: tells models of one name apart where the run may get several; the same one is logged once.
        """
        payload = model_payload(checkpoint, name, register, metrics or {}) | {"of": of}
        self._spool.put(self.key, ("model", payload | self._weigh("model", checkpoint)))

    def _weigh(self, op: Op, path: Path) -> dict[str, int]:
        """Count a file into ``cost/artifact_bytes``; one that is sent again, also after a restart, counts once.

        One that is not there weighs nothing: the sender tells of it.
        """
        if not path.is_file():
            return {}
        size = path.stat().st_size
        with self._lock:
            if self._sizes.get((op, str(path))) != size:
                self._sizes[op, str(path)] = size
                self._hold(self._last.get(BYTES, -1) + 1, {BYTES: float(sum(self._sizes.values()))})
        return {"bytes": size}

    def finish(
        self, state: RunState, metrics: Mapping[str, float] | None = None, reason: str = "", **tags: str
    ) -> None:
        """The final figures, the state and further tags, and close the run; nothing if it is closed already."""
        if metrics:
            step = int(metrics.get("cost/steps", 0))
            self.log(step, {name: value for name, value in metrics.items() if not math.isnan(value)})
        self.flush()
        if self._spool.ended(self.key):
            return
        last = _tags({**tags, "state": state, **({"reason": reason} if reason else {})})
        self._spool.put(
            self.key, ("tags", last), ("end", {"status": _STATUS[state], "time": int(time.time() * 1000)})
        )


class Tracker:
    """A tracking store and the experiment in it, written to through a spool."""

    def __init__(
        self,
        uri: str,
        *,
        artifacts: Path | str | None = None,
        experiment: str = EXPERIMENT,
        spool: Path | None = None,
        client: Any = None,
    ) -> None:
        """Connect and make the experiment if it is missing. ``artifacts``: the folder where a local store
        keeps files, or a URI for any store.

        ``spool``: the folder of the spool; None keeps it in memory. With a spool that has sent to this store before,
        the store need not answer now.

        Raises:
            UserError: as `check_tracking`, or another process writes to this spool.
        """
        location = artifact_location(artifacts, uri)
        self.uri = uri
        self.spool = Spool(spool)
        self.sender = Sender(self.spool, uri, experiment, location, client)
        try:
            if self.spool.meta("uri") != without_password(uri) and client is None:
                check_tracking(uri)
                self.sender.found(*open_store(uri, experiment, location))
        except UserError:
            self.spool.close()
            raise
        self.spool.describe(uri=without_password(uri), experiment=experiment, artifacts=location or "")
        self.sender.start()

    @property
    def address(self) -> str:
        """The store as it may be shown: without a password."""
        return without_password(self.uri)

    @property
    def client(self) -> Any:
        """MLflow's own client, for reading."""
        return self.sender.client

    @property
    def experiment_id(self) -> str:
        return self.sender.experiment_id

    def start(
        self,
        name: str,
        kind: RunKind,
        *,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        parent: TrackedRun | None = None,
        key: str | None = None,
        reopen: bool = False,
    ) -> TrackedRun:
        """Begin a run; ``tags`` get the prefix ``siclip.``. With ``parent`` the UI folds it under that run.

        ``key``: a name of our own; a run that the spool knows by it is gone on with, one that was closed only if it
        was interrupted or with ``reopen``.
        """
        key = key or uuid.uuid4().hex
        commit = {"git_commit": git_commit()} if git_commit() else {}
        create = {
            "name": name, "time": int(time.time() * 1000), "parent": parent.key if parent else None,
            **_tags({"kind": kind, "state": "running", **tags, **commit}),
        }  # fmt: skip
        pairs = [(name, str(value)[:MAX_PARAM_LENGTH]) for name, value in params.items()]
        batches = [pairs[first : first + MAX_PARAMS] for first in range(0, len(pairs), MAX_PARAMS)]
        if not self.spool.begin(key, ("create", create), *(("params", {"params": batch}) for batch in batches)):
            return self._again(key, reopen)
        return TrackedRun(self, key)

    def _again(self, key: str, reopen: bool) -> TrackedRun:
        run = TrackedRun(self, key, known=True)
        ended = self.spool.ended(key)
        if ended == "KILLED" or (ended and reopen):
            self.spool.put(key, ("reopen", {}), ("tags", _tags({"state": "running"})))
        return run

    def supersede(self, key: str, by: str) -> None:
        """Mark a run with the key of the one that was made in place of it, and close it if it still was open.

        ``by`` empty: it stands for itself again.
        """
        if self.spool.knows(key):
            run = TrackedRun(self, key, known=True)
            run.finish("interrupted")
            run.tag(superseded_by=by)

    def run_id(self, key: str, timeout_seconds: float = 60) -> str:
        until = time.monotonic() + timeout_seconds
        while (found := self.spool.run_id(key)) is None:
            if time.monotonic() > until:
                raise UserError(f"the MLflow store {self.uri} does not answer: {self.sender.reason}")
            self.spool.arrived.set()
            time.sleep(0.01)
        return found

    def flush(self, timeout_seconds: float | None = 60) -> int:
        """Wait until all is sent; returns how many records still wait."""
        return self.sender.flush(timeout_seconds)

    def close(self, timeout_seconds: float | None = 60) -> int:
        """Send what is left and let the spool go; returns how many records still wait in it."""
        left = self.flush(timeout_seconds)
        self.sender.stop()
        self.spool.close()
        return left

    def study_names(self) -> set[str]:
        """Names of the studies in the experiment."""
        return names_in(self.client, self.experiment_id)


def _tags(named: Mapping[str, object]) -> dict[str, dict[str, str]]:
    return {"tags": {f"siclip.{name}": str(value)[:MAX_PARAM_LENGTH] for name, value in named.items()}}
