"""Everything that commands print passes through `siclip_platform.display`, which escapes what a terminal obeys."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DISPLAY = ROOT / "platform" / "siclip_platform" / "display.py"
EXEMPT = {
    # passes on what a job on a cluster printed, which has passed through `display` there; progress needs its codes
    ROOT / "platform" / "siclip_platform" / "cli" / "submit.py",
}


def printers(code: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module == "rich.console":
            found += [alias.name for alias in node.names if alias.name == "Console"]
        elif isinstance(node, ast.ImportFrom) and node.module == "rich":
            found += [alias.name for alias in node.names if alias.name in ("print", "get_console")]
        elif isinstance(node, ast.Name) and node.id == "print":
            found.append("print")
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in (
            *("typer.echo", "typer.secho", "click.echo", "click.secho", "sys.stdout.write", "sys.stderr.write"),
        ):
            found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("code", ["print(1)", "from rich.console import Console", "typer.echo(x)", "f(print)"])
def test_every_printer_is_found(code: str) -> None:
    assert printers(code)


@pytest.mark.parametrize("folder", ["platform", "jobs", "siclip"])
def test_only_display_prints(folder: str) -> None:
    files = [path for path in (ROOT / folder).rglob("*.py") if path != DISPLAY and path not in EXEMPT]
    found = {str(path.relative_to(ROOT)): printers(path.read_text()) for path in files}
    assert not {path: uses for path, uses in found.items() if uses}
