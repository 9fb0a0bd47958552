"""Secrets in the environment of jobs, and a search for them in everything that the jobs write."""

from __future__ import annotations

import base64
import re
import secrets
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import mlflow.environment_variables

SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|USERNAME|CREDENTIAL")
MLFLOW_SECRETS = {
    variable.name
    for variable in vars(mlflow.environment_variables).values()
    if getattr(variable, "type", None) is str and SECRET.search(variable.name)
}
SECRETS = MLFLOW_SECRETS | {
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SECURITY_TOKEN",
    "AWS_SESSION_TOKEN",
    "AZURE_STORAGE_ACCESS_KEY",
    "AZURE_STORAGE_CONNECTION_STRING",
    "AZURE_STORAGE_KEY",
    "DATABRICKS_TOKEN",
    "GOOGLE_API_KEY",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
}
JOBS = """
from ray.job_submission import JobSubmissionClient
print([job.dict() for job in JobSubmissionClient().list_jobs()])
"""


def new_secrets() -> dict[str, str]:
    """A secret for each variable, in the format that MLflow requires of its encryption key: 32 bytes in base64."""
    return {name: base64.urlsafe_b64encode(secrets.token_bytes(32)).decode() for name in SECRETS}


def assert_no_secret_in(env: Mapping[str, str], out: Path, output: str, names: set[str]) -> None:
    """No secret is in the output and the files of jobs, in the head's logs, or in its records of jobs.

    Args:
        env: the environment of the head, with the secrets.
        out: the folder that the jobs wrote to.
        output: what the jobs printed.
        names: of the jobs; the head must list them.
    """
    values = {env[name] for name in (*SECRETS, "RAY_AUTH_TOKEN")}
    listing = [sys.executable, "-c", JOBS]
    jobs = subprocess.run(listing, env=env, capture_output=True, text=True, timeout=120, check=True).stdout
    assert all(name in jobs for name in names)
    texts = {"output": output.encode(), "job metadata": jobs.encode()}
    files = [path for path in out.rglob("*") if path.is_file()]
    files += [path for path in Path(env["HEAD_FOLDER"]).rglob("*") if path.is_file() and path.parent.name == "logs"]
    assert {"mlflow.db", "report.html"} <= {path.name for path in files}
    texts |= {str(path): path.read_bytes() for path in files}
    found = {
        (where, line.replace(secret, b"SECRET")[:300])
        for where, text in texts.items()
        for secret in (secret.encode() for secret in values)
        if secret in text
        for line in text.splitlines()
        if secret in line
    }
    assert not found
