"""Runs as the rest of the platform sees them: started, logged to and finished without waiting for MLflow."""

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
from siclip_platform.tracking.address import without_password
from siclip_platform.tracking.models import model_payload
from siclip_platform.tracking.names import names_in
from siclip_platform.tracking.reconcile import Reconciled, reconcile
from siclip_platform.tracking.sender import Sender
from siclip_platform.tracking.spool import Op, Spool
from siclip_platform.tracking.store import (
    EXPERIMENT,
    LoginRefused,
    artifact_location,
    check_tracking,
    git_commit,
    open_store,
)

RunKind = Literal["study", "trial", "seed", "teacher", "best", "control", "confirm", "train", "evaluation"]
RunState = Literal["completed", "pruned", "failed", "interrupted"]
MAX_METRICS, MAX_PARAMS = 1000, 100  # MLflow's limits for one batch
MAX_PARAM_LENGTH = 6000
ARTIFACT_BYTES = "cost/artifact_bytes"
_STATUS = {"completed": "FINISHED", "pruned": "KILLED", "failed": "FAILED", "interrupted": "KILLED"}


class TrackedRun:
    """One MLflow run. Step metrics are buffered and spooled in batches; several threads may log.

    A run that is resumed after a restart ignores metrics of steps that it already has.
    """

    def __init__(self, tracker: Tracker, key: str, known: bool = False) -> None:
        """Attach to a run of a tracker; `Tracker.start` is the way to get one.

        Args:
            tracker: the store.
            key: the run's key in the spool.
            known: the run was started before.
        """
        self.known = known
        self.tracker = tracker
        self.key = key
        self._spool = tracker.spool
        self._last = self._spool.last_steps(key)
        self._buffer: list[tuple[str, float, int, int]] = []
        # Lock order: this one, then the spool's.
        self._lock = threading.Lock()
        self._sizes = self._spool.sizes(key)

    @property
    def run_id(self) -> str:
        """MLflow's id of the run; waits until the run exists there.

        Raises:
            UserError: the store does not answer.
        """
        return self.tracker.run_id(self.key)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log metrics of a step. They are spooled in batches of a few hundred, at `flush` and when the run ends."""
        with self._lock:
            self._add(step, metrics)

    def _add(self, step: int, metrics: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        for name, value in metrics.items():
            key = stored_key(name)
            # A restarted trial repeats the steps since its last checkpoint, and MLflow would store them twice.
            if step > self._last.get(key, -1):
                self._last[key] = step
                self._buffer.append((key, float(value), now, step))
        # Half of MLflow's limit, so that most batches are one request.
        if len(self._buffer) >= MAX_METRICS // 2:
            self._put()

    def flush(self) -> None:
        """Write the buffered metrics to the spool."""
        with self._lock:
            self._put()

    def _put(self) -> None:
        while self._buffer:
            batch, self._buffer = self._buffer[:MAX_METRICS], self._buffer[MAX_METRICS:]
            self._spool.put(self.key, ("metrics", {"metrics": batch}))

    def tag(self, **tags: object) -> None:
        """Set tags, each under the prefix ``siclip.``."""
        self._spool.put(self.key, ("tags", _tags(tags)))

    def dataset(self, name: str, digest: str, folder: AnyPath, profile: str = "", context: str = "train") -> None:
        """Log the dataset that the run reads, as an MLflow dataset.

        Args:
            name: the dataset's name.
            digest: its hash.
            folder: its folder or URI.
            profile: JSON that MLflow shows beside it.
            context: what the run uses it for.
        """
        uri = folder.as_uri()
        scheme = "local" if isinstance(folder, Path) else uri.partition(":")[0]
        entity = {"name": name, "digest": digest, "source_type": scheme, "source": f'{{"uri": "{uri}"}}'}
        payload = {"context": context, "dataset": entity | {"profile": profile or None}}
        self._spool.put(self.key, ("inputs", payload))

    def artifact(self, path: Path) -> None:
        """Log a file; it must not be moved before it is sent."""
        self._spool.put(self.key, ("artifact", {"path": str(path), **self._weigh("artifact", path)}))

    def model(
        self,
        checkpoint: Path,
        name: str,
        *,
        of: str = "",
        register: str | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Log a checkpoint as a logged model with a signature.

        Args:
            checkpoint: the file; it must not be moved before it is sent.
            name: the logged model's name.
            of: distinguishes models of the same name within the run; the same model is logged once.
            register: its name in the model registry; None does not register it.
            metrics: metrics of the model.
        """
        payload = model_payload(checkpoint, name, register, metrics or {}) | {"of": of}
        self._spool.put(self.key, ("model", payload | self._weigh("model", checkpoint)))

    def _weigh(self, op: Op, path: Path) -> dict[str, int]:
        """Add a file's size to ``cost/artifact_bytes``; a file that is sent again, also after a restart, counts once.

        A missing file counts nothing here; the sender reports it.
        """
        if not path.is_file():
            return {}
        size = path.stat().st_size
        with self._lock:
            if self._sizes.get((op, str(path))) != size:
                self._sizes[op, str(path)] = size
                # MLflow shows the value of the highest step, so each change takes the next one.
                self._add(self._last.get(ARTIFACT_BYTES, -1) + 1, {ARTIFACT_BYTES: float(sum(self._sizes.values()))})
        return {"bytes": size}

    def finish(
        self, state: RunState, metrics: Mapping[str, float] | None = None, reason: str = "", **tags: str
    ) -> None:
        """Log the final metrics, the state and further tags, and close the run; a closed run only gets the metrics.

        Args:
            state: how the run ended.
            metrics: final metrics; those that are NaN are omitted.
            reason: why it ended so.
            tags: further tags, each under the prefix ``siclip.``.
        """
        if metrics:
            step = int(metrics.get("cost/steps", 0))
            self.log(step, {name: value for name, value in metrics.items() if not math.isnan(value)})
        self.flush()
        # A resumed study finishes runs again that it had finished before it was killed.
        if self._spool.ended(self.key):
            return
        last = _tags({**tags, "state": state, **({"reason": reason} if reason else {})})
        self._spool.put(
            self.key,
            ("tags", last),
            ("end", {"status": _STATUS[state], "time": int(time.time() * 1000), "state": state}),
        )


class Tracker:
    """A tracking store and an experiment in it, written to through a spool."""

    def __init__(
        self,
        uri: str,
        *,
        artifacts: Path | str | None = None,
        experiment: str = EXPERIMENT,
        spool: Path | None = None,
        client: Any = None,
    ) -> None:
        """Connect, and create the experiment if it is missing.

        Args:
            uri: the store.
            artifacts: where a new experiment stores files: a URI, or for a local store a folder.
            experiment: the experiment's name.
            spool: the folder of the spool; None keeps it in memory. If it was used with this server before, the
                server need not answer now.
            client: an ``MlflowClient`` to use instead of a new one.

        Raises:
            UserError: as `check_tracking`, or another process writes to this spool.
        """
        location = artifact_location(artifacts, uri)
        self.uri = uri
        self.spool = Spool(spool)
        self.sender = Sender(self.spool, uri, experiment, location, client)
        try:
            self._answers = client is not None or self._open(experiment, location)
        except BaseException:
            self.spool.close()
            raise
        self.spool.describe(uri=without_password(uri), experiment=experiment, artifacts=location or "")
        self.sender.start()

    def _open(self, experiment: str, location: str | None) -> bool:
        """Connect. Returns False if a server that the spool was used with before does not answer."""
        try:
            check_tracking(self.uri)
            self.sender.found(*open_store(self.uri, experiment, location))
        except LoginRefused:
            raise
        except UserError:
            if self.uri.startswith("sqlite:") or self.spool.meta("uri") != without_password(self.uri):
                raise
            return False
        return True

    def reconcile(self, study: str) -> Reconciled:
        """Before a study is resumed: repair what was lost in its store or its spool, if the store answers.

        Args:
            study: the study's key.
        """
        self.spool.retry_refused()
        if not self._answers:
            return Reconciled()
        return reconcile(self.spool, self.client, self.experiment_id, study)

    @property
    def address(self) -> str:
        """The store's URI without a password, as it may be shown."""
        return without_password(self.uri)

    @property
    def client(self) -> Any:
        """The ``MlflowClient``, for reading."""
        return self.sender.client

    @property
    def known_experiment(self) -> str | None:
        """MLflow's id of the experiment, if the store has told it; asks nothing."""
        return self.sender.known_experiment

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
        """Start a run, or resume one.

        Args:
            name: the run's name in MLflow.
            kind: the tag ``siclip.kind``.
            params: parameters of a new run; values longer than `MAX_PARAM_LENGTH` are cut.
            tags: further tags of a new run, each under the prefix ``siclip.``.
            parent: the run that MLflow's UI nests it under.
            key: the run's key in the spool; a run that the spool knows by it is resumed. Default: a new key.
            reopen: also reopen a run that was closed; without it only an interrupted one is.
        """
        key = key or uuid.uuid4().hex
        commit = {"git_commit": git_commit()} if git_commit() else {}
        create = {
            "name": name,
            "time": int(time.time() * 1000),
            "parent": parent.key if parent else None,
            **_tags({"kind": kind, "state": "running", **tags, **commit}),
        }
        pairs = [(name, str(value)[:MAX_PARAM_LENGTH]) for name, value in params.items()]
        batches = [pairs[first : first + MAX_PARAMS] for first in range(0, len(pairs), MAX_PARAMS)]
        if not self.spool.begin(key, ("create", create), *(("params", {"params": batch}) for batch in batches)):
            return self._resumed(key, reopen)
        return TrackedRun(self, key)

    def _resumed(self, key: str, reopen: bool) -> TrackedRun:
        run = TrackedRun(self, key, known=True)
        ended = self.spool.ended(key)
        if ended == "KILLED" or (ended and reopen):
            self.spool.put(key, ("reopen", {}), ("tags", _tags({"state": "running"})))
        return run

    def supersede(self, key: str, by: str) -> None:
        """Mark a run as replaced by another one, and close it if it is still open.

        Args:
            key: the key of the replaced run; an unknown key is ignored.
            by: the key of the run that replaces it; empty to undo the mark.
        """
        if self.spool.knows(key):
            run = TrackedRun(self, key, known=True)
            run.finish("interrupted")
            run.tag(superseded_by=by)

    def run_id(self, key: str, timeout_seconds: float = 60) -> str:
        """MLflow's id of a run; waits until the run exists there.

        Raises:
            UserError: the store does not answer.
        """
        until = time.monotonic() + timeout_seconds
        while (found := self.spool.run_id(key)) is None:
            if time.monotonic() > until:
                raise UserError(f"the MLflow store {self.address} does not answer: {self.sender.reason}")
            # Wakes the sender, which waits up to a second for new events.
            self.spool.arrived.set()
            time.sleep(0.01)
        return found

    def flush(self, timeout_seconds: float | None = 60) -> int:
        """Wait until everything is sent, at most for the timeout. Returns the number of events that still wait."""
        return self.sender.flush(timeout_seconds)

    def close(self, timeout_seconds: float | None = 60) -> int:
        """Flush and close the spool. Returns the number of events that still wait in it."""
        left = self.flush(timeout_seconds)
        self.sender.stop()
        self.spool.close()
        return left

    def study_names(self) -> set[str]:
        """Names of the studies in the experiment."""
        return names_in(self.client, self.experiment_id)


def _tags(named: Mapping[str, object]) -> dict[str, dict[str, str]]:
    return {"tags": {f"siclip.{name}": str(value)[:MAX_PARAM_LENGTH] for name, value in named.items()}}
