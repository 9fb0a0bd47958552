"""The examples in the documentation run and print the output in their comments.

The Python blocks of a document share one namespace. The comment after an unindented ``print`` is its output, up to a
colon that is followed by an explanation. Afterwards the document's ``siclip-platform model`` lines run in the same
folder.
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
from tests.support.open_clip_parts import TAG, nano_behind_the_tag

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = ("README.md", "docs/library.md", "docs/decisions/0004-the-text-head-computes-a-window.md")


def blocks(document: str, language: str) -> list[tuple[int, str]]:
    """For each fenced block of a language, the number of lines before it and its text."""
    text = (ROOT / document).read_text(encoding="utf-8")
    fenced = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text[: block.start(1)].count("\n"), block[1]) for block in fenced]


def expected_output(code: str) -> list[str]:
    """The output according to the comments."""
    return [comment.partition(": ")[0] for comment in re.findall(r"^print\(.*\)  # (.+)$", code, re.MULTILINE)]


def commands(document: str) -> list[str]:
    lines = "\n".join(code for _, code in blocks(document, "sh")).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("siclip-platform model ")]


@pytest.fixture
def folder(document: str, digits: Path, nano_teacher: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the files that a document's examples read.

    `mobileclip_s0.pt` has Apple's names and random weights. It is large, so the folder is removed afterwards.
    open_clip's tag of MobileCLIP2-S0 leads to a nano model.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.manual_seed(0)
        code = [block for language in ("python", "sh") for _, block in blocks(document, language)]
        if any("mobileclip_s0.pt" in block for block in code):
            siclip.export_official(siclip.create_model("mobileclip-s0"), folder / "mobileclip_s0.pt")
        Image.effect_noise((320, 280), 60).save(folder / "photo.jpg")
        (folder / "data").mkdir()
        for dataset in ("digits", "cc12m-syn"):
            (folder / "data" / dataset).symlink_to(digits)
        if any(TAG in block for block in code):
            nano_behind_the_tag(folder, monkeypatch)
        (folder / "runs" / "teacher" / "train").mkdir(parents=True)
        shutil.copy(nano_teacher, folder / "runs" / "teacher" / "train" / "train.pt")
        monkeypatch.chdir(folder)
        yield folder


@pytest.mark.slow
@pytest.mark.parametrize("document", DOCUMENTS)
def test_examples_run_and_print_the_documented_output(
    document: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from siclip.models.text_tower import TextTower

    # Restores the method after the test, because an example replaces it.
    monkeypatch.setattr(TextTower, "_windowed", TextTower._windowed)
    examples = blocks(document, "python")
    assert examples
    names: dict[str, object] = {}
    for line, code in examples:
        capsys.readouterr()
        # Newlines first, so that a traceback shows the document's line.
        exec(compile("\n" * line + code, ROOT / document, "exec"), names)
        assert capsys.readouterr().out.splitlines() == expected_output(code), f"{document}, line {line + 1}"
    for command in commands(document):
        monkeypatch.setattr(sys, "argv", shlex.split(command, comments=True))
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0, f"{command}: {capsys.readouterr().err}"


def test_every_print_has_its_output_as_a_comment() -> None:
    """Indented prints are not allowed, because their comments would not be checked."""
    for document in DOCUMENTS:
        for line, code in blocks(document, "python"):
            prints = len(re.findall(r"\bprint\(", code))
            assert prints == len(expected_output(code)), f"{document}, line {line + 1}: a print without its comment"


def test_the_library_page_shows_commands() -> None:
    assert {line.split()[2] for line in commands("docs/library.md")} >= {"convert", "describe", "propose-sharing"}
