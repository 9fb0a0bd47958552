"""The ten-minute check of a card, as far as it goes without one."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gpu_check
import pytest
import torch
from docs_commands import Command
from docs_commands import check as parse

DEVICE = {"card": "NVIDIA GeForce RTX 3090", "memory_bytes": 24 * 2**30}


def part(code: str, limit: float = 20, **values: Any) -> gpu_check.Part:
    return replace(gpu_check.Part("memory", ("-c", code, "{out}"), limit, gpu_check.read_json), **values)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_a_card_it_says_so_and_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main(["--out", str(tmp_path / "gpu")]) == 2
    assert "needs a CUDA device" in capsys.readouterr().err
    assert not (tmp_path / "gpu").exists()


def test_parts_take_ten_minutes_and_their_programs_accept_the_options() -> None:
    everything = gpu_check.parts()
    assert sum(part.limit for part in everything) <= 600
    for each in everything:
        words = tuple(word.replace("{out}", "result.json") for word in each.words)
        if words[:2] == ("-m", "siclip_platform"):
            parse(Command("gpu_check", ("siclip-platform", *words[2:]), mention=False))
        elif words[0] != "-m":
            parse(Command("gpu_check", ("python", *words), mention=False))
    [tests] = [each for each in everything if each.name == "tests"]
    assert "tests/siclip/training/test_training.py" in tests.words


def test_one_json_has_the_card_and_every_part(tmp_path: Path) -> None:
    good = part("import json, sys; json.dump({'peak_mib': 7}, open(sys.argv[1], 'w'))")
    bad = part("import sys; print('no kernel image'); sys.exit(3)", name="training_step")
    empty = part("print('nothing')", name="captioning")
    advising = part(
        "import sys; print('{\"hours\": 9}'); sys.exit(1)", name="plan", read=gpu_check.read_printed, codes=(0, 1)
    )
    assert gpu_check.check(DEVICE, [good, bad, empty, advising], tmp_path) == 1
    found = json.loads((tmp_path / "nvidia-geforce-rtx-3090.json").read_text())
    assert found["card"] == DEVICE["card"] and found["versions"]["torch"] == version("torch")
    parts = found["parts"]
    assert parts["memory"]["result"] == {"peak_mib": 7} and parts["plan"]["result"] == {"hours": 9}
    assert parts["training_step"]["reason"] == "exit code 3" and "no kernel image" in parts["training_step"]["output"]
    assert not parts["captioning"]["ok"] and "wrote no result" in parts["captioning"]["reason"]
    assert gpu_check.check(DEVICE, [good], tmp_path) == 0


def test_a_part_that_hangs_is_stopped_with_its_children() -> None:
    code = f"import subprocess; subprocess.run([{sys.executable!r}, '-c', 'import time; time.sleep(60)'])"
    started = time.monotonic()
    found = gpu_check.run_part(part(code, limit=1.0))
    assert time.monotonic() - started < 20
    assert not found["ok"] and "limit of 1 s" in found["reason"]


def test_skipped_tests_are_no_result(tmp_path: Path) -> None:
    for counts, is_usable in (
        ('tests="2" skipped="0"', True),
        ('tests="2" skipped="1"', False),
        ('tests="0"', False),
    ):
        path = tmp_path / "junit.xml"
        path.write_text(f'<testsuites><testsuite failures="0" errors="0" {counts}/></testsuites>')
        if is_usable:
            assert gpu_check.read_tests(path, "")["tests"] == 2
            continue
        with pytest.raises(gpu_check.Unusable, match="skipped"):
            gpu_check.read_tests(path, "")


def test_pages_say_what_was_never_seen_on_a_gpu_as_long_as_it_was_not() -> None:
    root = Path(gpu_check.__file__).resolve().parents[1]
    has_run = any(gpu_check.RESULTS.glob("*.json"))
    for page in ("README.md", "docs/plan.md", "docs/cards.md", "docs/cc12m.md"):
        text = " ".join((root / page).read_text(encoding="utf-8").split())
        assert ("never been seen on a GPU" in text) == (not has_run), page
        assert has_run or "make gpu-check" in text, page
