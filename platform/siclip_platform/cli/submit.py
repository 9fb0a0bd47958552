"""``siclip-platform submit``."""

from __future__ import annotations

from typing import Annotated

import typer


def submit(
    context: typer.Context,
    job: Annotated[str, typer.Argument(help="A script in jobs/, such as tune_wikd; its own options follow it.")],
    address: Annotated[
        str | None, typer.Option(help="The cluster's dashboard; default: RAY_ADDRESS, else http://127.0.0.1:8265.")
    ] = None,
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow store, given on to the job.")] = None,
    installed: Annotated[bool, typer.Option(help="The cluster has the packages: send no code along.")] = False,
    follow: Annotated[bool, typer.Option(help="Show what the job says until it ends.")] = True,
) -> None:
    """Submit a job to a Ray cluster, with this checkout's code, and follow its output.

    Exit code 1 where the job fails.
    """
    from siclip_platform.submit import SUCCEEDED, compose
    from siclip_platform.submit import submit as send

    submission = compose(job, context.args, address=address, tracking_uri=tracking_uri, installed=installed)
    status = send(submission, typer.echo, follow)
    typer.echo(f"status: {status}")
    if follow and status != SUCCEEDED:
        raise typer.Exit(1)
