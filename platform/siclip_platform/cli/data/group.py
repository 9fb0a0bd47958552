"""The command group; the other modules of this package add its commands."""

from __future__ import annotations

import typer

app = typer.Typer(help="Build, import, verify and inspect datasets.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Build, import, verify and inspect datasets."""
