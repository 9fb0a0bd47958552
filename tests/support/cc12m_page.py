"""The table of docs/cc12m.md, made from what the page's own `plan` command prints.

python tests/support/cc12m_page.py    # writes it into the page
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from docs_commands import commands
from typer.testing import CliRunner

from siclip_platform.cli import app

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "cc12m.md"
BEGIN, END = "<!-- plan -->\n", "<!-- end of plan -->\n"
RECIPE = "siclip-s0-cc12m-syn"
STEPS = {"import": "4", "captioning": "5", "embedding": "5", "trunk cache": "6", "training": "6", "evaluation": "8"}
"""Stage → the section of the page that describes it; a search is in 7."""


def planned() -> dict[str, Any]:
    """What the page's plan command prints for the shipped recipe."""
    [words] = [each.words for each in commands("docs/cc12m.md") if "--pipeline" in each.words]
    words = [RECIPE if word.endswith(".yaml") else word for word in words[1:]]
    done = CliRunner().invoke(app, [*words, "--json"])
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def table(plan: dict[str, Any]) -> str:
    """Stages with hours, memory, disk and energy."""
    length = f"{plan['pairs']:,} pairs, {plan['epochs']:g} epochs, {plan['steps']:,} steps of 1,536"
    lines = [
        f"{length}, on one {plan['machine']}:",
        "",
        "| step | stage | hours | GiB of the card | GB on disk at its end | kWh of the card |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for stage in plan["stages"]:
        lines.append(_row(STEPS.get(stage["stage"], "7"), stage["stage"], stage))
    lines.append(_row("", "**all**; the most", plan["pipeline"]))
    return "\n".join(lines) + "\n"


def _row(step: str, name: str, found: dict[str, Any]) -> str:
    memory = f"{found['memory_bytes'] / 2**30:.1f}" if found["memory_bytes"] else "–"
    energy = span(found["kilowatt_hours"]) if any(found["kilowatt_hours"]) else "–"
    return f"| {step} | {name} | {span(found['hours'])} | {memory} | {found['disk_bytes'] / 1e9:,.0f} | {energy} |"


def span(pair: list[float]) -> str:
    """``32 to 64``, one number where both are the same, or ``under 0.1``."""
    if max(pair) < 0.1:
        return "under 0.1"
    low, high = (f"{value:.2g}" if value < 10 else f"{value:.0f}" for value in pair)
    return low if low == high else f"{low} to {high}"


def main() -> None:
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}{table(planned())}{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
