"""MLflow stores: their URIs, whether one can be written to, and the experiment in it."""

from __future__ import annotations

import os
import subprocess
import urllib.error
import urllib.request
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from siclip.errors import UserError
from siclip_platform.storage import RemotePath, as_path, check_writable
from siclip_platform.tracking.mlflow_patches import limit_http_requests, quieten

EXPERIMENT = "siclip"


def default_tracking_uri(out: Path) -> str:
    """An sqlite store in the output folder, named by its absolute path."""
    return f"sqlite:///{out.resolve() / 'mlflow.db'}"


def without_password(uri: str) -> str:
    """The URI of a store without user and password, as it may be written to files."""
    parts = urlparse(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if "@" in parts.netloc else uri


def check_tracking(uri: str, timeout_seconds: float = 5.0) -> None:
    """Check that a store can be written to, before anything is computed.

    Raises:
        UserError: the scheme is not supported, the folder cannot be created, or the server does not answer.
    """
    scheme = urlparse(uri).scheme
    if scheme == "sqlite" and uri.startswith("sqlite:////"):
        folder = Path(uri.removeprefix("sqlite:///")).parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"tracking store {uri}: {folder} cannot be created ({error.strerror}); choose another --out"
            ) from None
    elif scheme in ("http", "https"):
        try:
            # Not with MLflow's client, which would retry for minutes.
            with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=timeout_seconds):
                pass
        except (urllib.error.URLError, OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise UserError(
                f"the MLflow server at {without_password(uri)} does not answer within {timeout_seconds:g} s "
                f"({reason}); start it, correct --tracking-uri, or omit it for an sqlite store in --out"
            ) from None
    else:
        raise UserError(f"tracking URI {uri!r}: write sqlite:///ABSOLUTE/PATH/mlflow.db or http(s)://SERVER:PORT")


def check_store_exists(uri: str) -> None:
    """For readers: as `check_tracking`, and an sqlite store must already exist.

    Raises:
        UserError: the store does not exist, with the remedy.
    """
    path = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:") and not path.is_file():
        raise UserError(f"no MLflow store at {path}: name one with --tracking-uri, or run a search first (make demo)")
    check_tracking(uri)


def connect(uri: str) -> Any:
    """An ``MlflowClient`` that gives up soon when a server does not answer: the sender retries."""
    limit_http_requests()
    import mlflow

    quieten()
    return mlflow.MlflowClient(tracking_uri=uri)


def experiment_id(client: Any, name: str, artifacts: str | None) -> str:
    """The id of the experiment with this name, created if it is missing.

    Args:
        client: an ``MlflowClient``.
        name: the experiment's name.
        artifacts: where a new experiment stores files; None leaves it to the store.

    Raises:
        UserError: the experiment exists and stores its files at another URI.
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
    """
    import mlflow
    from alembic.util.exc import CommandError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        client = connect(uri)
        return client, experiment_id(client, experiment, artifacts)
    except (mlflow.MlflowException, SQLAlchemyError, CommandError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"tracking store {uri} cannot be used as an MLflow store: {reason}") from None


def study_names(uri: str, artifacts: Path | str | None = None, experiment: str = EXPERIMENT) -> set[str]:
    """Names of the studies in an experiment, which is created if it is missing.

    Raises:
        UserError: the store is not an MLflow store.
    """
    return names_in(*open_store(uri, experiment, artifact_location(artifacts, uri)))


def names_in(client: Any, experiment: str) -> set[str]:
    """Names of the studies in the experiment with this id."""
    studies = client.search_runs([experiment], "tags.`siclip.kind` = 'study'")
    return {run.data.tags.get("siclip.study", "") for run in studies}


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
