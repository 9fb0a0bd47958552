"""The documentation site builds without warnings and loads nothing from the network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def pages(nav: list[dict[str, object]]) -> list[str]:
    found: list[str] = []
    for entry in nav:
        for value in entry.values():
            found += [value] if isinstance(value, str) else pages(value)  # type: ignore[arg-type]
    return found


@pytest.mark.slow
def test_every_menu_entry_is_a_page_and_every_page_is_in_the_menu(site: Path) -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    menu = pages(yaml.safe_load(text)["nav"])
    assert all((site / page.replace(".md", ".html")).is_file() for page in menu)
    written = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert written <= set(menu)


@pytest.mark.slow
def test_commands_and_api_are_in_the_reference(site: Path) -> None:
    commands = (site / "reference" / "commands.html").read_text()
    for name in ("tune", "report", "plan", "doctor", "data import", "model export"):
        assert f"siclip-platform {name}</h2>" in re.sub(r"<a class=\"headerlink.*?</a>", "", commands)
    assert "mine_negatives" in (site / "reference" / "api.html").read_text()


@pytest.mark.slow
def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text()
        loaded = re.findall(r"<(?:script|img)[^>]*\ssrc=\"(https?:[^\"]+)", text)
        loaded += re.findall(r"<link[^>]*rel=\"(?:stylesheet|preload|icon)\"[^>]*href=\"(https?:[^\"]+)", text)
        assert loaded == [], page
