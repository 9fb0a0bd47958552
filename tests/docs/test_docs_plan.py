"""Pages say what `plan` says: every output that docs/plan.md shows, and the table of docs/cards.md."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from siclip_platform.cli import app

DOCS = Path(__file__).resolve().parents[2] / "docs"
SHOWN = re.compile(r"```sh\nsiclip-platform (plan[^\n]*)\n```\n(?:(?!```).)*?```text\n(.*?)```", re.DOTALL)


def lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines() if line.strip()]


@pytest.mark.parametrize(("command", "shown"), SHOWN.findall((DOCS / "plan.md").read_text()))
def test_the_page_shows_the_output_of_plan(command: str, shown: str) -> None:
    result = CliRunner().invoke(app, shlex.split(command))
    assert result.exit_code == 0, result.output
    assert lines(shown) == lines(result.output)


def test_the_page_shows_three_plans() -> None:
    assert len(SHOWN.findall((DOCS / "plan.md").read_text())) == 3


CARD_ROW = re.compile(r"^\|[^|]*\| \d+ GiB \| `([^`]*)` \| ([\d.]+) GiB \| (\d+) to (\d+) \|$", re.MULTILINE)


def test_the_table_of_cards_has_the_numbers_of_plan() -> None:
    rows = CARD_ROW.findall((DOCS / "cards.md").read_text())
    assert len(rows) == 5
    for options, memory, least, most in rows:
        found = json.loads(CliRunner().invoke(app, ["plan", "--json", *shlex.split(options)]).stdout)
        shown = (f"{found['memory_total_bytes'] / 2**30:.1f}", *(f"{hours:.0f}" for hours in found["hours"]))
        assert shown == (memory, least, most), options
