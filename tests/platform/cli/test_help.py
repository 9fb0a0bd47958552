"""Every command's help: `-h`, an example that its own parser accepts, and the version."""

from __future__ import annotations

import importlib.metadata
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from docs_commands import JOBS, Command, check, job_parser, main_command
from typer.testing import CliRunner

from siclip_platform.cli import app
from siclip_platform.cli.examples import EXAMPLES
from siclip_platform.cli.results import DEFAULT_OUT
from siclip_platform.cli.tune import OUT


def leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    if not hasattr(command, "commands"):
        yield " ".join(path), command
        return
    for name, below in command.commands.items():
        yield from leaves(below, (*path, name))


def test_every_command_has_an_example_that_it_accepts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = dict(leaves(main_command()))
    assert found.keys() == EXAMPLES.keys()
    for name, command in found.items():
        example = EXAMPLES[name]
        shown = job_parser(JOBS[name]) if name in JOBS else command
        assert shown.epilog == f"Example: {example}", name
        assert example.startswith(f"siclip-platform {name}")
        check(Command("help", tuple(shlex.split(example)), False))


@pytest.mark.parametrize("words", [["-h"], ["tune", "-h"], ["data", "import", "-h"]])
def test_help_has_a_short_option(words: list[str]) -> None:
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0 and "Usage" in result.output
    long = CliRunner().invoke(app, [*words[:-1], "--help"])
    assert result.output == long.output


def test_the_version_is_that_of_the_package() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.output) == (
        0,
        f"siclip-platform {importlib.metadata.version('siclip-platform')}\n",
    )


def test_report_and_compare_read_where_tune_writes() -> None:
    assert DEFAULT_OUT == OUT
