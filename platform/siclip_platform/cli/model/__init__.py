"""``siclip-platform model``: describe, convert and export models, and propose what they could share."""

from __future__ import annotations

import typer

app = typer.Typer(help="Describe, convert and export models.", no_args_is_help=True)
