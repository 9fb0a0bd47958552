"""``siclip-platform submit`` and ``job``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from siclip_platform.cli.experiments import run_job


def job(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A script in jobs/, such as tune_wikd; its own options follow it.")],
) -> None:
    """Run a job in this process, from this checkout or installation; submit --installed runs this on a cluster."""
    run_job(f"{Path(name).stem}.py", context)


def submit(
    context: typer.Context,
    job: Annotated[str, typer.Argument(help="A script in jobs/, such as tune_wikd; its own options follow it.")],
    address: Annotated[
        str | None, typer.Option(help="The cluster's dashboard; default: RAY_ADDRESS, else http://127.0.0.1:8265.")
    ] = None,
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow store; passed to the job.")] = None,
    installed: Annotated[
        bool, typer.Option(help="The cluster has the packages: do not send this checkout's code.")
    ] = False,
    gpus: Annotated[
        float,
        typer.Option(min=0, help="GPUs of the job's own process: for evaluate_siclip, which starts no workers."),
    ] = 0,
    follow: Annotated[bool, typer.Option(help="Print the job's output until it ends.")] = True,
) -> None:
    """Submit a job to a Ray cluster, with this checkout's code, and follow its output.

    The exit code is 1 if the job fails.
    """
    from siclip_platform.cluster.submit import SUCCEEDED, compose
    from siclip_platform.cluster.submit import submit as send

    submission = compose(
        job, context.args, address=address, tracking_uri=tracking_uri, installed=installed, gpus=gpus
    )
    status = send(submission, typer.echo, follow)
    typer.echo(f"status: {status}")
    if follow and status != SUCCEEDED:
        raise typer.Exit(1)
