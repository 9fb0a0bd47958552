"""``siclip-platform model``: describe, convert and export models, and propose what they could share."""

from __future__ import annotations

import typer

app = typer.Typer(help="Describe, convert and export models.", no_args_is_help=True)

from siclip_platform.cli.model import convert as convert  # noqa: E402
from siclip_platform.cli.model import describe as describe  # noqa: E402
from siclip_platform.cli.model import export as export  # noqa: E402
from siclip_platform.cli.model import sharing as sharing  # noqa: E402
