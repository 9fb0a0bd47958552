"""``siclip-platform model describe``: the table, the JSON, and bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from siclip_platform.cli import main

COLUMNS = ["train form", "reparameterized", "adds, M", "MiB", "%"]


def run(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[object, str, str]:
    """Exit code, standard output and standard error of ``model describe``."""
    monkeypatch.setattr(sys, "argv", ["siclip-platform", "model", "describe", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capsys.readouterr()
    return ended.value.code, printed.out, printed.err


def cell(table: str, row: str, column: str) -> str:
    """The number in a row of the table that ends at the same position as the title of its column."""
    (titles,) = [line for line in table.splitlines() if line.startswith("stage")]
    (line,) = [line for line in table.splitlines() if line.strip().startswith(row + "  ")]
    end = titles.index(column) + len(column)
    assert len(line) == end or line[end] == " ", "the column's numbers end elsewhere"
    return line[:end].split()[-1]


@pytest.mark.slow
def test_the_table_of_siclip_s0_in_a_pipe() -> None:
    command = "model describe siclip-s0 --image-sharing qk:0-0 --text-sharing qk:0-0-1-1"
    done = subprocess.run(
        [sys.executable, "-m", "siclip_platform", *command.split()],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "40"},
    )
    assert cell(done.stdout, "image tower", "reparameterized") == "9,781,156"
    assert cell(done.stdout, "text tower", "train form") == "39,285,352"
    assert cell(done.stdout, "total", "train form") == "49,115,981"
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_table_and_json_agree(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["siclip-nano", "--text-sharing", "mlp:0-0-1-1", "--freeze", "before_sasp"]
    code, table, _ = run(arguments, monkeypatch, capsys)
    assert code == 0
    found = json.loads(run([*arguments, "--json"], monkeypatch, capsys)[1])
    assert (found["model"], found["freeze"]) == ("siclip-nano", "before_sasp")
    assert (found["image_sharing"], found["text_sharing"]) == ("qk:0-0", "mlp:0-0-1-1")
    rows = {"image tower": found["towers"]["image"], "text tower": found["towers"]["text"], "total": found["total"]}
    rows |= {stage["stage"]: stage for stage in found["stages"] if stage["stage"] not in ("projection", "blocks")}
    for name, row in rows.items():
        share = 100 * row["trainable_parameters"] / row["parameters"]
        assert [cell(table, name, column) for column in COLUMNS] == [
            f"{row['parameters']:,}",
            f"{row['reparameterized_parameters']:,}",
            f"{row['multiply_adds'] / 1e6:,.1f}",
            f"{row['activation_bytes'] / 2**20:,.2f}",
            f"{share:.1f}",
        ]


@pytest.mark.parametrize(("name", "policy"), [("siclip-nano", "inherited"), ("mobileclip-nano", "none")])
def test_inherited_weights_are_frozen_by_default(
    name: str, policy: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = json.loads(run([name, "--json"], monkeypatch, capsys)[1])
    assert found["freeze"] == policy
    trained = {stage["stage"] for stage in found["stages"] if stage["trainable_parameters"]}
    if policy == "inherited":
        assert trained == {"stage 2 blocks", "blocks", "logit scale"}
    else:
        assert found["total"]["trainable_parameters"] == found["total"]["parameters"]


def test_a_checkpoint_is_described_like_its_model(
    nano_teacher: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    by_file = run([str(nano_teacher), "--json"], monkeypatch, capsys)
    by_name = run(["mobileclip-nano", "--json"], monkeypatch, capsys)
    assert by_file == by_name
    code, _, error = run([str(nano_teacher), "--image-sharing", "qk:0-0"], monkeypatch, capsys)
    assert code == 2 and "is a checkpoint and has its own sharing patterns" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["siclip-s1"], "no model 'siclip-s1': known models are mobileclip-nano"),
        (["siclip-nano", "--image-sharing", "qk:0-1-1"], "3 numbers for 2 blocks"),
        (["siclip-nano", "--text-sharing", "kv:0-0-1-1"], "unknown part 'kv'"),
        (["mobileclip-nano", "--image-sharing", "qk:0-0"], "has no SAS-P blocks to share"),
        (["siclip-nano", "--freeze", "everything"], "--freeze"),
        (["missing.pt"], "missing.pt does not exist"),
        (["folder/missing"], "folder/missing does not exist"),
        (["empty.pt"], "empty.pt"),
        (["truncated.pt"], "truncated.pt"),
        (["tensors.pt"], "tensors.pt"),
    ],
)
def test_bad_input_is_refused(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    nano_teacher: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty.pt").touch()
    (tmp_path / "truncated.pt").write_bytes(nano_teacher.read_bytes()[:1000])
    torch.save({"weight": torch.zeros(2)}, tmp_path / "tensors.pt")
    monkeypatch.chdir(tmp_path)
    code, out, error = run(arguments, monkeypatch, capsys)
    assert code == 2
    assert out == ""
    assert message in error and "Traceback" not in error


@pytest.mark.slow
def test_bad_input_ends_the_process_without_a_traceback(tmp_path: Path, nano_teacher: Path) -> None:
    (tmp_path / "truncated.pt").write_bytes(nano_teacher.read_bytes()[:1000])
    command = [sys.executable, "-m", "siclip_platform", "model", "describe", "truncated.pt"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr
