"""The command group of this folder's commands."""

from __future__ import annotations

import typer

app = typer.Typer(help="Describe, convert and export models, and propose sharing patterns.", no_args_is_help=True)
