"""``siclip-platform doctor``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

MARKS = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "wrong": "[red]wrong[/]"}


def doctor(
    out: Annotated[Path, typer.Option(help="The folder that runs will write to.")] = Path("runs"),
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow store; default: sqlite in --out.")] = None,
    recipe: Annotated[
        str | None, typer.Option(metavar="NAME-OR-FILE", help="A recipe: whether its runs save.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check this machine: report what would stop or slow down a run, and the command that fixes it.

    The exit code is 1 if anything would stop a run.
    """
    from rich.markup import escape

    from siclip_platform.display import Terminal, echo
    from siclip_platform.doctor import Finding, examine

    found: list[Finding] = []
    console = Terminal(markup=True, soft_wrap=True)
    for finding in examine(out, tracking_uri, recipe):
        found.append(finding)
        if not as_json:
            console.print(f"{MARKS[finding.level]:<16} [bold]{escape(finding.name)}[/]: {escape(finding.detail)}")
            if finding.remedy:
                console.print(f"         → {escape(finding.remedy)}")
    if as_json:
        echo(json.dumps([asdict(finding) for finding in found], indent=2))
    if any(finding.level == "wrong" for finding in found):
        raise typer.Exit(1)
