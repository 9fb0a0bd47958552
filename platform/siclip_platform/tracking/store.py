"""MLflow stores: their URIs, whether one can be written to, and the experiment in it."""

from __future__ import annotations

import http.client
import os
import subprocess
import urllib.request
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from siclip.errors import UserError
from siclip_platform.storage import RemotePath, as_path, check_writable
from siclip_platform.storage.full_disk import is_full
from siclip_platform.tracking.address import read_address, without_password
from siclip_platform.tracking.creation import create_store, sqlite_file, sqlite_uri
from siclip_platform.tracking.mlflow_patches import http_limits, limit_http_requests, log_in, quieten

EXPERIMENT = "siclip"
OPEN_SECONDS = 10  # at the start somebody waits, and later the sender does
LOG_IN = (
    "give --tracking-uri http(s)://USER:PASSWORD@SERVER, or set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
)
REFUSED = ("UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED", "PERMISSION_DENIED")


class LoginRefused(UserError):
    """A server that answers, but not to this user."""


def default_tracking_uri(out: Path) -> str:
    """An sqlite store in the output folder, named by its absolute path."""
    return sqlite_uri(out / "mlflow.db")


def check_tracking(uri: str, timeout_seconds: float = 5.0) -> None:
    """Check that a store can be written to, before anything is computed.

    Raises:
        UserError: the scheme is not supported, the folder cannot be created, or the server does not answer.
    """
    scheme = uri.partition(":")[0]
    file = sqlite_file(uri)
    if file is not None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"tracking store {uri}: {file.parent} cannot be created ({error.strerror}); choose another --out"
            ) from None
    elif scheme in ("http", "https"):
        address = read_address(uri)
        request = urllib.request.Request(f"{address.uri.rstrip('/')}/health", headers=address.authorization)
        try:
            # Not with MLflow's client, which would retry for minutes.
            with urllib.request.urlopen(request, timeout=timeout_seconds):
                pass
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            if getattr(error, "code", None) in (401, 403):
                raise UserError(
                    f"the MLflow server at {address.uri} refuses the login ({reason}); {LOG_IN}"
                ) from None
            raise UserError(
                f"the MLflow server at {address.uri} does not answer within {timeout_seconds:g} s "
                f"({reason}); start it, correct --tracking-uri, or omit it for an sqlite store in --out"
            ) from None
    else:
        # Only the kind: a URI of an unknown kind may have a password anywhere.
        kind = f"the kind {scheme!r} is not supported" if "://" in uri else f"{uri.rpartition('@')[2]!r} has no kind"
        if scheme == "sqlite":
            kind = f"{uri!r} has no absolute path" if "@" not in uri else "the path is not absolute"
        raise UserError(f"tracking URI: {kind}; write sqlite:///ABSOLUTE/PATH/mlflow.db or http(s)://SERVER:PORT")


def check_store_exists(uri: str) -> None:
    """For readers: as `check_tracking`, and an sqlite store must already exist.

    Raises:
        UserError: the store does not exist, with the remedy.
    """
    path = sqlite_file(uri)
    if path is not None and not path.is_file():
        raise UserError(f"no MLflow store at {path}: name one with --tracking-uri, or run a search first (make demo)")
    check_tracking(uri)


def connect(uri: str) -> Any:
    """An ``MlflowClient`` that gives up soon when a server does not answer: the sender retries.

    The store of an sqlite URI is created if it is missing. User and password of an http(s) URI log this process in,
    and are no part of the client's URI, which MLflow shows in its messages.

    Raises:
        UserError: an sqlite store cannot be created.
    """
    limit_http_requests()
    address = read_address(uri)
    if address.user:
        log_in(address.user, address.password)
    file = sqlite_file(uri)
    if file is not None:
        create_store(file, _client)
    return _client(address.uri)


def _client(uri: str) -> Any:
    import mlflow

    quieten()
    if sqlite_file(uri) is not None and "%" in uri:
        # MLflow makes the folder of a URI that begins with sqlite:///, without decoding it: a stray "a%2541b".
        uri = uri.replace("sqlite:", "sqlite+pysqlite:", 1)
    return mlflow.MlflowClient(tracking_uri=uri)


def experiment_id(client: Any, name: str, artifacts: str | None) -> str:
    """The id of the experiment with this name, created if it is missing.

    Args:
        client: an ``MlflowClient``.
        name: the experiment's name.
        artifacts: where a new experiment stores files; None leaves it to the store.

    Raises:
        UserError: the experiment exists and stores its files at another URI, or was deleted.
    """
    import mlflow

    found = client.get_experiment_by_name(name)
    if found is not None and artifacts and not artifacts.startswith("file:"):
        _check_location(found, artifacts)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=artifacts))
        except mlflow.MlflowException:  # another process created it in between
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        raise UserError(
            f"experiment {name!r} of this store was deleted in MLflow: restore it with mlflow experiments restore "
            f"--experiment-id {found.experiment_id}, or name another --tracking-uri"
        )
    return str(found.experiment_id)


def _check_location(experiment: Any, artifacts: str) -> None:
    """An experiment stores all its files at one URI, fixed when it is created."""
    if experiment.artifact_location.rstrip("/") != artifacts.rstrip("/"):
        raise UserError(
            f"experiment {experiment.name!r} in this store has its files at {experiment.artifact_location}, not at "
            f"--artifacts {artifacts}: name a new store with --tracking-uri, or omit --artifacts"
        )


def artifact_location(artifacts: Path | str | None, uri: str) -> str | None:
    """Where a new experiment stores files: a URI works with every store, a folder only with a local one."""
    if isinstance(artifacts, str):
        return artifacts
    return artifacts.resolve().as_uri() if artifacts and uri.startswith("sqlite") else None


def check_artifacts(uri: str) -> None:
    """Check that MLflow can store files at a URI, before anything is computed.

    Raises:
        UserError: a package that MLflow requires is missing, or the store refuses or does not answer.
    """
    where = as_path(uri)
    if isinstance(where, RemotePath):
        if where.query:
            raise UserError(
                f"--artifacts {where.plain}: MLflow accepts no options in a URI; set AWS_ENDPOINT_URL instead"
            )
        if where.root.startswith("s3:") and find_spec("boto3") is None:
            raise UserError("MLflow stores files on s3:// with boto3, which is not installed: pip install boto3")
        # MLflow overrides the endpoint of boto3 with this variable, so the check must use it too.
        endpoint = urlparse(os.environ.get("MLFLOW_S3_ENDPOINT_URL", ""))
        if endpoint.netloc:
            where = replace(where, query=f"endpoint_override={endpoint.netloc}&scheme={endpoint.scheme}")
    check_writable(where, "--artifacts")


def open_store(uri: str, experiment: str, artifacts: str | None) -> tuple[Any, str]:
    """A client and the id of the experiment, which is created if it is missing.

    Raises:
        UserError: the store is not an MLflow store.
        LoginRefused: the server refuses the user.
    """
    import mlflow
    from alembic.util.exc import CommandError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        client = connect(uri)
        with http_limits(repeats=0, seconds=OPEN_SECONDS):
            return client, experiment_id(client, experiment, artifacts)
    except (mlflow.MlflowException, SQLAlchemyError, CommandError) as error:
        reason = str(error).strip().splitlines()[0]
        where = without_password(uri)
        if is_full(error):
            raise UserError(f"tracking store {where}: the disk is full; free space on it, then start again") from None
        if getattr(error, "error_code", "") in REFUSED:
            raise LoginRefused(f"the MLflow server at {where} refuses the login ({reason}); {LOG_IN}") from None
        raise UserError(
            f"tracking store {where} cannot be used as an MLflow store: {reason}; name another --tracking-uri, or "
            "restore the store from a copy"
        ) from None


def check_usable(uri: str) -> None:
    """For writers: as `check_tracking`, and the store is opened, so that it is known to be an MLflow store.

    Raises:
        UserError: it is not one, may not be written to, or its experiment was deleted.
    """
    check_tracking(uri)
    file = sqlite_file(uri)
    if file is not None and not all(os.access(path, os.W_OK) for path in (file.parent, file) if path.exists()):
        raise UserError(f"tracking store {file} may not be written to: name another --tracking-uri")
    open_store(uri, EXPERIMENT, None)


@cache
def git_commit() -> str | None:
    """The commit of the running code, with ``-dirty`` if files were changed; None outside a checkout."""
    checkout = Path(__file__).resolve().parents[3]
    if not (checkout / ".git").exists():
        return None
    try:
        # --exclude: the hash of the commit, not the name of a tag.
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=checkout,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
