"""The command group that the modules beside this one add to."""

from __future__ import annotations

import typer

app = typer.Typer(help="Build, import, check and look at datasets.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Build, import, check and look at datasets."""
