"""MLflow: the driver is the single writer. A study is a run, its trials, teacher, best and control are nested.

Tags: ``siclip.kind`` (study, trial, teacher, best, control, train), ``siclip.study``,
``siclip.state`` (running, completed, pruned, failed), ``siclip.trial``, ``siclip.recipe_hash``,
``siclip.dataset_hash``, ``siclip.git_commit``, ``siclip.reason``.
"""

from __future__ import annotations

import logging
import math
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

from siclip_platform.errors import UserError
from siclip_platform.metrics import stored_key

Kind = Literal["study", "trial", "teacher", "best", "control", "train"]
State = Literal["completed", "pruned", "failed"]
EXPERIMENT = "siclip"
MAX_METRICS, MAX_PARAMS = 1000, 100  # MLflow's limits for one batch
MAX_PARAM_LENGTH = 6000
_STATUS = {"completed": "FINISHED", "pruned": "FINISHED", "failed": "FAILED"}


def default_tracking_uri(out: Path) -> str:
    """An sqlite store in the output folder, by its absolute path."""
    return f"sqlite:///{out.resolve() / 'mlflow.db'}"


def check_tracking(uri: str, timeout_seconds: float = 5.0) -> None:
    """Make sure that a store can be written to, before anything is computed.

    Raises:
        UserError: a scheme that is not supported, a folder that cannot be made, a server that does not answer.
    """
    scheme = urlparse(uri).scheme
    if scheme == "sqlite" and uri.startswith("sqlite:////"):
        folder = Path(uri.removeprefix("sqlite:///")).parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"tracking store {uri}: {folder} cannot be made ({error.strerror}); name another --out"
            ) from None
    elif scheme in ("http", "https"):
        try:
            with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=timeout_seconds):
                pass
        except (urllib.error.URLError, OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise UserError(
                f"the MLflow server at {uri} does not answer within {timeout_seconds:g} s ({reason}); start it, "
                "correct --tracking-uri, or leave it out for an sqlite store in the output folder"
            ) from None
    else:
        raise UserError(f"tracking URI {uri!r}: write sqlite:///ABSOLUTE/PATH/mlflow.db or http(s)://SERVER:PORT")


def check_store_exists(uri: str) -> None:
    """For readers: as `check_tracking`, and an sqlite store must be there already.

    Raises:
        UserError: there is none, with the remedy.
    """
    path = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:") and not path.is_file():
        raise UserError(f"no MLflow store at {path}: name one with --tracking-uri, or run a search first (make demo)")
    check_tracking(uri)


class TrackedRun:
    """One MLflow run. Step metrics are held back and sent in batches; several threads may log."""

    def __init__(self, client: Any, run_id: str) -> None:
        self.client = client
        self.run_id = run_id
        self._held: list[Any] = []
        self._lock = threading.Lock()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Figures of a step; sent once a few hundred have come together or the run ends."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        with self._lock:
            self._held += [Metric(stored_key(key), float(value), now, step) for key, value in metrics.items()]
            if len(self._held) >= MAX_METRICS // 2:
                self._send()

    def flush(self) -> None:
        with self._lock:
            self._send()

    def _send(self) -> None:
        while self._held:
            batch, self._held = self._held[:MAX_METRICS], self._held[MAX_METRICS:]
            self.client.log_batch(self.run_id, metrics=batch)

    def tag(self, **tags: object) -> None:
        """Set tags, each under the prefix ``siclip.``."""
        for name, value in tags.items():
            self.client.set_tag(self.run_id, f"siclip.{name}", str(value))

    def artifact(self, path: Path) -> None:
        self.client.log_artifact(self.run_id, str(path))

    def finish(self, state: State, metrics: Mapping[str, float] | None = None, reason: str = "") -> None:
        """Send what is held, the final figures and the state, and close the run."""
        if metrics:
            step = int(metrics.get("cost/steps", 0))
            self.log(step, {name: value for name, value in metrics.items() if not math.isnan(value)})
        self.flush()
        self.tag(state=state, **({"reason": reason[:MAX_PARAM_LENGTH]} if reason else {}))
        self.client.set_terminated(self.run_id, status=_STATUS[state])


class Tracker:
    """A tracking store and the experiment in it."""

    def __init__(self, uri: str, *, artifacts: Path | None = None, experiment: str = EXPERIMENT) -> None:
        """Connect and make the experiment if it is missing. ``artifacts``: where a local store keeps files.

        Raises:
            UserError: as `check_tracking`.
        """
        check_tracking(uri)
        import mlflow
        from alembic.util.exc import CommandError
        from sqlalchemy.exc import SQLAlchemyError

        for name in ("mlflow", "alembic"):  # importing mlflow sets its own levels, so this comes after
            logging.getLogger(name).setLevel(logging.WARNING)
        self.uri = uri
        local = artifacts.resolve().as_uri() if artifacts and uri.startswith("sqlite") else None
        try:
            self.client = mlflow.MlflowClient(tracking_uri=uri)
            found = self.client.get_experiment_by_name(experiment)
            self.experiment_id = (
                found.experiment_id
                if found is not None
                else self.client.create_experiment(experiment, artifact_location=local)
            )
        except (mlflow.MlflowException, SQLAlchemyError, CommandError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"tracking store {uri} cannot be used as an MLflow store: {reason}") from None

    def start(
        self,
        name: str,
        kind: Kind,
        *,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        parent: TrackedRun | None = None,
    ) -> TrackedRun:
        """Begin a run; ``tags`` get the prefix ``siclip.``. With ``parent`` the UI folds it under that run."""
        from mlflow.entities import Param
        from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

        all_tags = {f"siclip.{key}": value for key, value in {"kind": kind, "state": "running", **tags}.items()}
        commit = git_commit()
        if commit:
            all_tags["siclip.git_commit"] = commit
        if parent:
            all_tags[MLFLOW_PARENT_RUN_ID] = parent.run_id
        run = self.client.create_run(self.experiment_id, run_name=name, tags=all_tags)
        entities = [Param(key, str(value)[:MAX_PARAM_LENGTH]) for key, value in params.items()]
        for first in range(0, len(entities), MAX_PARAMS):
            self.client.log_batch(run.info.run_id, params=entities[first : first + MAX_PARAMS])
        return TrackedRun(self.client, run.info.run_id)

    def study_names(self) -> set[str]:
        """Names of the studies in the experiment."""
        studies = self.client.search_runs([self.experiment_id], "tags.`siclip.kind` = 'study'")
        return {run.data.tags.get("siclip.study", "") for run in studies}


def git_commit() -> str | None:
    """The commit of the code that runs, with ``-dirty`` if it was changed; None outside a checkout."""
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=checkout, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
