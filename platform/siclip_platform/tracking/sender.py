"""The only writer to MLflow: a thread that sends a spool's events in order, each once."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from siclip_platform.tracking.mlflow_patches import http_limits
from siclip_platform.tracking.models import log_model, remove_doubles
from siclip_platform.tracking.spool import Event, Spool
from siclip_platform.tracking.store import connect, experiment_id

SPOOL_KEY = "siclip.spool_key"
PAUSES = (0.5, 1.0, 2.0, 5.0, 10.0)
# Error codes after which sending the same event again soon cannot succeed.
PERMANENT = {
    "INVALID_PARAMETER_VALUE",
    "BAD_REQUEST",
    "RESOURCE_ALREADY_EXISTS",
    "INVALID_STATE",
    "NOT_IMPLEMENTED",
}
# MLflow's answer for a run that was deleted, and for a moment that of a server that starts, or of a proxy before it.
GONE = "RESOURCE_DOES_NOT_EXIST"
TRIES_IF_GONE = 5
PARENT_TAG = "mlflow.parentRunId"  # a documented system tag: the UI nests the run under that one
log = logging.getLogger(__name__)


class RunMissing(Exception):
    """MLflow refused to create the run of an event."""


class Sender:
    """Sends events while the store answers; otherwise retries and keeps everything in the spool.

    An event that was sent just before a kill is sent again. MLflow stores an equal metric, parameter, tag or file
    only once, and before a run or a model is created again it is searched for by its spool key.
    """

    def __init__(self, spool: Spool, uri: str, experiment: str, artifacts: str | None, client: Any = None) -> None:
        self.spool = spool
        self.uri = uri
        self.experiment = experiment
        self.artifacts = artifacts
        self.reason = ""
        self._client = client
        self._experiment_id: str | None = None
        self._gone: dict[int, int] = {}
        self._gone_runs: set[str] = set()
        self._stop = threading.Event()
        # A daemon: a request that hangs must not keep the process alive.
        self._thread = threading.Thread(target=self._work, daemon=True, name="mlflow-sender")
        self._idle = threading.Condition()
        self._sends: dict[str, Callable[[Event], None]] = {
            "create": self._create,
            "params": self._params,
            "metrics": self._metrics,
            "tags": self._tags,
            "inputs": self._inputs,
            "artifact": self._artifact,
            "model": self._model,
            "end": self._end,
            "reopen": self._reopen,
        }

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def client(self) -> Any:
        """The ``MlflowClient``, created on first use."""
        if self._client is None:
            self._client = connect(self.uri)
        return self._client

    @property
    def experiment_id(self) -> str:
        """MLflow's id of the experiment, looked up on first use."""
        if self._experiment_id is None:
            self._experiment_id = experiment_id(self.client, self.experiment, self.artifacts)
        return self._experiment_id

    @property
    def known_experiment(self) -> str | None:
        """The experiment's id, if the store has told it."""
        return self._experiment_id

    def found(self, client: Any, experiment: str) -> None:
        """Use this client and experiment id instead of looking them up."""
        self._client, self._experiment_id = client, experiment

    def flush(self, timeout_seconds: float | None) -> int:
        """Wait until everything is sent, at most for the timeout. Returns the number of events that still wait."""
        until = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        with self._idle:
            while (left := self.spool.waiting()) and (until is None or time.monotonic() < until):
                self.spool.arrived.set()
                self._idle.wait(0.1)
        return left

    def stop(self) -> None:
        """End the thread after the event that it is sending."""
        self._stop.set()
        self.spool.arrived.set()
        if self._thread.is_alive():
            self._thread.join(timeout=60)

    def _work(self) -> None:
        failures = 0
        while not self._stop.is_set():
            event = self.spool.next()
            if event is None:
                # Cleared before the count: an event that is added in between sets it again.
                self.spool.arrived.clear()
                with self._idle:
                    self._idle.notify_all()
                if self.spool.waiting() == 0:
                    self.spool.arrived.wait(1.0)
                continue
            if self._send(event):
                failures = 0
            else:
                self._stop.wait(PAUSES[min(failures, len(PAUSES) - 1)])
                failures += 1

    def _send(self, event: Event) -> bool:
        """Send an event. Returns whether it is done: sent, or refused for good."""
        from mlflow import MlflowException

        try:
            # Recorded first: if the process is killed now, the event may have arrived.
            self.spool.trying(event)
            self._sends[event.op](event)
        except RunMissing as error:
            self._refuse(event, str(error))
            return True
        except MlflowException as error:
            self.reason = _first_line(error)
            if error.error_code not in PERMANENT and not self._is_gone(event, error.error_code):
                return False
            self._refuse(event, self.reason)
            return True
        except FileNotFoundError as error:
            self.spool.refused(event, f"{error.filename} does not exist any more")
            return True
        except Exception as error:  # network, database: whatever it is, the event stays in the spool
            self.reason = _first_line(error)
            return False
        self.reason = ""
        self._gone.pop(event.seq, None)
        # `created` marks a create event as sent, in one transaction with the run's id.
        if event.op != "create":
            self.spool.sent(event)
        return True

    def _is_gone(self, event: Event, code: str) -> bool:
        """Whether MLflow has said often enough that a run does not exist; once for each later event of the run."""
        if code != GONE:
            return False
        self._gone[event.seq] = self._gone.get(event.seq, 0) + 1
        if event.run not in self._gone_runs and self._gone[event.seq] < TRIES_IF_GONE:
            return False
        self._gone_runs.add(event.run)
        return True

    def _refuse(self, event: Event, reason: str) -> None:
        log.warning("MLflow refuses %s of run %s: %s", event.op, event.run, reason)
        self.spool.refused(event, reason)

    def _run(self, event: Event) -> str:
        return self._run_id(event.run)

    def _run_id(self, key: str) -> str:
        run_id = self.spool.run_id(key)
        if run_id is None:
            raise RunMissing(f"run {key} could not be created")
        return run_id

    def _create(self, event: Event) -> None:
        payload = event.payload
        tags = {**payload["tags"], SPOOL_KEY: event.run}
        if payload["parent"]:
            tags[PARENT_TAG] = self._parent(payload["parent"])
        run_id = self._created_before(event.run, tags) if event.tried else None
        if run_id is None:
            # A repeat of the request by MLflow's client would create a second run if only the answer was lost.
            with http_limits(repeats=0):
                run_id = self._new_run(payload, tags)
        self.spool.created(event, run_id)
        self._gone_runs.discard(event.run)

    def _parent(self, key: str) -> str:
        run_id = self.spool.run_id(key)
        if run_id is None:
            raise RunMissing(f"its parent, run {key}, could not be created")
        return run_id

    def _new_run(self, payload: dict[str, Any], tags: dict[str, str]) -> str:
        run = self.client.create_run(
            self.experiment_id, start_time=payload["time"], run_name=payload["name"], tags=tags
        )
        return str(run.info.run_id)

    def _created_before(self, key: str, tags: dict[str, str]) -> str | None:
        found = self._with_key(key)
        if not found:
            return None
        run = found[0]
        if run.data.tags.get(PARENT_TAG) != tags.get(PARENT_TAG) and PARENT_TAG in tags:
            self.client.set_tag(run.info.run_id, PARENT_TAG, tags[PARENT_TAG])
        return str(run.info.run_id)

    def _with_key(self, key: str) -> list[Any]:
        """The runs that were created for a key, the oldest first: more than one if an answer came too late."""
        same_key = f"tags.`{SPOOL_KEY}` = '{key}'"
        return list(
            self.client.search_runs([self.experiment_id], same_key, order_by=["attributes.start_time ASC", "run_id"])
        )

    def _remove_doubles(self, key: str) -> None:
        """Delete the empty runs of requests that MLflow handled after we had asked again."""
        own = self._run_id(key)
        for run in self._with_key(key):
            if run.info.run_id != own:
                self.client.delete_run(run.info.run_id)

    def _params(self, event: Event) -> None:
        from mlflow.entities import Param

        self.client.log_batch(self._run(event), params=[Param(*pair) for pair in event.payload["params"]])

    def _metrics(self, event: Event) -> None:
        from mlflow.entities import Metric

        self.client.log_batch(self._run(event), metrics=[Metric(*item) for item in event.payload["metrics"]])

    def _tags(self, event: Event) -> None:
        from mlflow.entities import RunTag

        tags = [RunTag(key, value) for key, value in event.payload["tags"].items()]
        self.client.log_batch(self._run(event), tags=tags)

    def _inputs(self, event: Event) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        tag = InputTag("mlflow.data.context", event.payload["context"])
        self.client.log_inputs(self._run(event), [DatasetInput(Dataset(**event.payload["dataset"]), [tag])])

    def _artifact(self, event: Event) -> None:
        self.client.log_artifact(self._run(event), event.payload["path"])

    def _model(self, event: Event) -> None:
        log_model(self.client, self.experiment_id, self._run(event), event.run, event.payload)

    def _end(self, event: Event) -> None:
        if self.spool.repeated(event.run, "create"):
            self._remove_doubles(event.run)
        for payload in self.spool.repeated(event.run, "model"):
            remove_doubles(self.client, self.experiment_id, event.run, payload)
        self.client.set_terminated(self._run(event), status=event.payload["status"], end_time=event.payload["time"])

    def _reopen(self, event: Event) -> None:
        self.client.update_run(self._run(event), status="RUNNING")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:500] if lines else type(error).__name__
