"""Compose a Ray job from a script in ``jobs/``, send it to a cluster, and follow what it says."""

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
"""In a word, which may be a list or a mapping of them; an IPv6 address has its brackets."""
PASSWORD = re.compile(r"://[^\s/?#@:]*:[^\s/?#]*@")


@dataclass(frozen=True)
class Submission:
    """What is sent: a command line, the runtime environment it runs in, and how many cards its own process takes."""

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
    """A submission of a job by name, from this checkout.

    ``installed``: the cluster has the packages, so no code is sent along and the job is that of the installation
    there. ``tracking_uri``: given to the job as its ``--tracking-uri``. A job's command line and environment can be
    read by all who reach the cluster, so no secret may stand in them.

    Raises:
        UserError: there is no such job, it tracks nothing, or a secret stands in its words.
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
        UserError: there is none by this name, or this is an installation without the jobs; lists those there are.
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
        raise UserError(f"{script.stem} makes no runs and takes no --tracking-uri: leave it out")


def _refuse_password(word: str) -> None:
    uris = URI.findall(word)
    for uri in uris:
        if uri.startswith("s3:"):
            refuse_credentials(uri)
    if PASSWORD.search(word):
        raise UserError(
            "an argument of the job holds a password in a URL, and whoever reaches the cluster can read a job's "
            "command line: leave it out and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (or what the "
            "service reads) in the environment that the cluster's nodes are started in"
        )
    for uri in uris:
        refuse_credentials(uri)


def submit(submission: Submission, say: Callable[[str], None], follow: bool = True) -> str:
    """Send it, pass its output to ``say`` as it comes, and return its last status.

    Raises:
        UserError: no cluster answers, or it refuses the token.
    """
    prepare_environment(verbose=False)
    from ray.exceptions import RayError
    from ray.job_submission import JobSubmissionClient

    check_address(submission.address)
    try:
        client = JobSubmissionClient(submission.address)
        number = client.submit_job(
            entrypoint=submission.entrypoint,
            runtime_env=dict(submission.runtime_env) or None,
            metadata={"siclip.job": submission.job},
            entrypoint_num_gpus=submission.gpus or None,
        )
    except (RayError, RuntimeError, ConnectionError) as error:
        raise _refused(submission.address, error) from None
    say(f"submitted {number}: {submission.entrypoint}")
    if not follow:
        return str(client.get_job_status(number).value)
    try:
        asyncio.run(_follow(client, number, say))
    except KeyboardInterrupt:
        say(f"\nno longer following; the job goes on. Look: ray job logs -f {number}; stop it: ray job stop {number}")
    return str(client.get_job_status(number).value)


async def _follow(client: Any, number: str, say: Callable[[str], None]) -> None:
    async for lines in client.tail_job_logs(number):
        say(lines.rstrip("\n"))


def _refused(address: str, error: Exception) -> UserError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if "token" in str(error).lower() or "401" in str(error) or "403" in str(error):
        return UserError(
            f"the cluster at {address} refuses the token: {reason}. Put the head's token into RAY_AUTH_TOKEN or "
            "~/.ray/auth_token, with RAY_AUTH_MODE=token"
        )
    return UserError(f"the cluster at {address} did not take the job: {reason}")
