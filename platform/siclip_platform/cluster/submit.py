"""Compose a Ray job from a script in ``jobs/``, submit it to a cluster, and follow its output."""

from __future__ import annotations

import asyncio
import os
import re
import runpy
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
import yaml

from siclip.errors import UserError
from siclip_platform.cluster.connect import check_address, prepare_environment
from siclip_platform.storage import refuse_credentials

CHECKOUT = Path(__file__).resolve().parents[3]
DEFAULT_ADDRESS = "http://127.0.0.1:8265"
RUNTIME_ENV = "runtime_env.yaml"
SUCCEEDED = "SUCCEEDED"
URI = re.compile(r"[a-zA-Z][\w+.-]*://(?:\[[\w:.%]*\]|[^\s,\[\]}])+")
"""A URI inside an argument, which may be a list or a mapping of URIs; an IPv6 address is in brackets."""
PASSWORD = re.compile(r"://[^\s/?#@:]*:[^\s/?#]*@")


@dataclass(frozen=True)
class Submission:
    """A command line, the runtime environment it runs in, and the number of GPUs that its own process takes."""

    job: str
    entrypoint: str
    runtime_env: Mapping[str, Any]
    address: str
    gpus: float = 0


def compose(
    job: str,
    arguments: Sequence[str],
    *,
    address: str | None,
    tracking_uri: str | None,
    installed: bool,
    gpus: float = 0,
) -> Submission:
    """Compose the submission of a job of this checkout.

    Everyone who reaches the cluster can read a job's command line and environment, so secrets are refused.

    Args:
        job: the name of a script in ``jobs/``.
        arguments: the job's own arguments.
        address: the cluster's dashboard; default: RAY_ADDRESS, else `DEFAULT_ADDRESS`.
        tracking_uri: passed to the job as its ``--tracking-uri``.
        installed: the cluster has the packages, so no code is sent and the job of its installation runs.
        gpus: GPUs of the job's own process.

    Raises:
        UserError: there is no such job, it tracks nothing, or an argument contains a secret.
    """
    script = find_job(job)
    words = [*arguments]
    if tracking_uri:
        _check_tracks(script)
        words += ["--tracking-uri", tracking_uri]
    for word in words:
        _refuse_password(word)
    runtime_env: dict[str, Any] = {}
    command = ["-m", "siclip_platform", "job", script.stem]
    if not installed:
        runtime_env = yaml.safe_load((CHECKOUT / "jobs" / RUNTIME_ENV).read_text()) | {"working_dir": str(CHECKOUT)}
        command = [str(script.relative_to(CHECKOUT))]
    return Submission(
        job=script.stem,
        entrypoint=shlex.join(["python", *command, *words]),
        runtime_env=runtime_env,
        address=address or os.environ.get("RAY_ADDRESS") or DEFAULT_ADDRESS,
        gpus=gpus,
    )


def find_job(name: str) -> Path:
    """The script of a job of this checkout.

    Raises:
        UserError: there is no job with this name, or this is an installation without jobs; lists the existing jobs.
    """
    folder = CHECKOUT / "jobs"
    script = folder / f"{Path(name).stem}.py"
    if not script.is_file():
        jobs = ", ".join(sorted(path.stem for path in folder.glob("*.py"))) or "none: submit from a checkout"
        raise UserError(f"no job {name!r} in {folder}: there are {jobs}")
    return script


def _check_tracks(script: Path) -> None:
    job = typer.main.get_command(runpy.run_path(str(script))["app"])
    if not any("--tracking-uri" in parameter.opts for parameter in job.params):
        raise UserError(f"{script.stem} makes no runs and takes no --tracking-uri: omit it")


def _refuse_password(word: str) -> None:
    uris = URI.findall(word)
    for uri in uris:
        # First, since the message about a store's keys is more precise than that about a password in a URL.
        if uri.startswith("s3:"):
            refuse_credentials(uri)
    if PASSWORD.search(word):
        raise UserError(
            "an argument of the job contains a password in a URL, and everyone who reaches the cluster can read a "
            "job's command line: remove it and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (or the "
            "variables of the service) in the environment in which the cluster's nodes are started"
        )
    for uri in uris:
        refuse_credentials(uri)


def submit(submission: Submission, write: Callable[[str], None], follow: bool = True) -> str:
    """Submit a job and return its last known status.

    Args:
        submission: what `compose` returned.
        write: receives the job's output line by line.
        follow: wait for the job's end; Ctrl-C ends the waiting, not the job.

    Raises:
        UserError: no cluster answers, it refuses the token, or it refuses the job.
    """
    prepare_environment(verbose=False)
    from ray.exceptions import RayError
    from ray.job_submission import JobSubmissionClient

    check_address(submission.address)
    try:
        client = JobSubmissionClient(submission.address)
        job_id = client.submit_job(
            entrypoint=submission.entrypoint,
            runtime_env=dict(submission.runtime_env) or None,
            metadata={"siclip.job": submission.job},
            entrypoint_num_gpus=submission.gpus or None,
        )
    except (RayError, RuntimeError, ConnectionError) as error:
        raise _refused(submission.address, error) from None
    write(f"submitted {job_id}: {submission.entrypoint}")
    if not follow:
        return str(client.get_job_status(job_id).value)
    try:
        asyncio.run(_follow(client, job_id, write))
    except KeyboardInterrupt:
        write(
            f"\nno longer following; the job keeps running. Its output: ray job logs -f {job_id}; "
            f"to stop it: ray job stop {job_id}"
        )
    return str(client.get_job_status(job_id).value)


async def _follow(client: Any, job_id: str, write: Callable[[str], None]) -> None:
    async for lines in client.tail_job_logs(job_id):
        write(lines.rstrip("\n"))


def _refused(address: str, error: Exception) -> UserError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    # Ray reports a refused token as a RuntimeError with the HTTP answer in its text.
    if "token" in str(error).lower() or "401" in str(error) or "403" in str(error):
        return UserError(
            f"the cluster at {address} refuses the token: {reason}. Set the head's token in RAY_AUTH_TOKEN or "
            "~/.ray/auth_token, with RAY_AUTH_MODE=token"
        )
    return UserError(f"the cluster at {address} refused the job: {reason}")
