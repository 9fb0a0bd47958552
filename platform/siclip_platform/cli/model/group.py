"""The command group that the commands of this folder join."""

from __future__ import annotations

import typer

app = typer.Typer(help="Describe, convert and export models, and propose what they share.", no_args_is_help=True)
