"""The examples of the documentation run, and print what their comments say.

The python blocks of a document build on one another. Where a comment follows a ``print`` at the margin, it is what
is printed, up to a colon and what it means. After them its ``siclip-platform model`` lines run, in the same folder.
"""

from __future__ import annotations

import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

import siclip
from siclip_platform.cli import main

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = ("README.md", "docs/library.md", "docs/decisions/0004-the-text-head-computes-a-window.md")


def blocks(document: str, language: str) -> list[tuple[int, str]]:
    """The number of the line before each fenced block of a language, and its text."""
    text = (ROOT / document).read_text(encoding="utf-8")
    fenced = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text[: block.start(1)].count("\n"), block[1]) for block in fenced]


def promised(code: str) -> list[str]:
    """What the comments say that is printed."""
    return [comment.partition(": ")[0] for comment in re.findall(r"^print\(.*\)  # (.+)$", code, re.MULTILINE)]


def commands(document: str) -> list[str]:
    lines = "\n".join(code for _, code in blocks(document, "sh")).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("siclip-platform model ")]


@pytest.fixture
def folder(document: str, digits: Path, nano_teacher: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """What a document's examples read: `mobileclip_s0.pt` has Apple's names and random weights. It is large, so the
    folder is removed."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        torch.manual_seed(0)
        code = [block for language in ("python", "sh") for _, block in blocks(document, language)]
        if any("mobileclip_s0.pt" in block for block in code):
            siclip.export_official(siclip.create_model("mobileclip-s0"), place / "mobileclip_s0.pt")
        Image.effect_noise((320, 280), 60).save(place / "photo.jpg")
        (place / "data").mkdir()
        (place / "data" / "digits").symlink_to(digits)
        (place / "runs" / "teacher" / "train").mkdir(parents=True)
        shutil.copy(nano_teacher, place / "runs" / "teacher" / "train" / "train.pt")
        monkeypatch.chdir(place)
        yield place


@pytest.mark.slow
@pytest.mark.parametrize("document", DOCUMENTS)
def test_examples_run_and_print_what_they_say(
    document: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from siclip.models.text_tower import TextTower

    monkeypatch.setattr(TextTower, "_windowed", TextTower._windowed)  # put back what an example replaces
    examples = blocks(document, "python")
    assert examples
    names: dict[str, object] = {}
    for line, code in examples:
        capsys.readouterr()
        exec(compile("\n" * line + code, ROOT / document, "exec"), names)  # a traceback shows the document's line
        assert capsys.readouterr().out.splitlines() == promised(code), f"{document}, line {line + 1}"
    for command in commands(document):
        monkeypatch.setattr(sys, "argv", shlex.split(command, comments=True))
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0, f"{command}: {capsys.readouterr().err}"


def test_every_promise_is_at_the_margin() -> None:
    """A print inside a loop or a function has no comment: it would not be looked at."""
    for document in DOCUMENTS:
        for line, code in blocks(document, "python"):
            prints = len(re.findall(r"\bprint\(", code))
            assert prints == len(promised(code)), f"{document}, line {line + 1}: a print without its comment"


def test_the_library_page_shows_commands() -> None:
    assert {line.split()[2] for line in commands("docs/library.md")} >= {"convert", "describe", "propose-sharing"}
