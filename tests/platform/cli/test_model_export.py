"""``siclip-platform model export``: ONNX, the official state dict, open_clip, and bad input."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from siclip.checkpoints.formats import load_checkpoint, load_model, save_checkpoint
from siclip.models import create_model
from siclip_platform.cli import main


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch bombed",)


def run(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "siclip_platform", "model", "export", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)


Export = Callable[..., tuple[int, str, str]]


@pytest.fixture
def export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Export:
    """Runs the command in this process; returns exit code, stdout, and stderr in one line."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["siclip-platform", "model", "export", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, re.sub(r"\s+", " ", captured.err)

    return call


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("student") / "student.pt"
    save_checkpoint(path, create_model("siclip-nano"))
    return path


@pytest.mark.slow
def test_onnx_is_written_and_nothing_is_printed_to_stderr(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    shallow = {"image": {"layers": (1, 1, 1), "sharing": "none"}, "text": {"layers": 1, "sharing": "none"}}
    student = tmp_path_factory.mktemp("shallow") / "student.pt"
    save_checkpoint(student, create_model("siclip-nano", **shallow))
    done = run(tmp_path, student, "out", "--format", "onnx")
    assert (done.returncode, done.stderr) == (0, "")
    *written, difference, card = done.stdout.splitlines()
    assert card == "model card: out/README.md"
    assert [line.split(": ")[0] for line in written] == ["out/image.onnx", "out/text.onnx"]
    assert 0 < float(difference.split(": ")[1].split()[0]) <= 1e-4
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["README.md", "image.onnx", "out", "text.onnx"]


def test_open_clip_is_written_and_computes_the_same(tmp_path: Path, student: Path, export: Export) -> None:
    from siclip.export import load_open_clip

    code, out, _ = export(student, "out", "--format", "open_clip")
    files = ["out/open_clip_config.json", "out/open_clip_model.safetensors"]
    assert code == 0
    assert out.splitlines()[:2] == [f"{name}: {(tmp_path / name).stat().st_size:,} bytes" for name in files]
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = load_model(student).eval().encode_image(images)
        assert torch.equal(load_open_clip(tmp_path / "out").encode_image(images), expected)
    code, _, error = export(student, "out", "--format", "open_clip")
    assert code == 2 and "out exists and is not overwritten: delete it" in error


def test_the_official_state_dict_is_written(tmp_path: Path, nano_teacher: Path, export: Export) -> None:
    code, out, _ = export(nano_teacher, "out.pt", "--format", "official")
    assert code == 0 and "largest difference from the model's outputs: 0.0e+00" in out
    loaded = create_model("mobileclip-nano")
    load_checkpoint(loaded, tmp_path / "out.pt")
    expected = load_model(nano_teacher).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in loaded.state_dict().items())


def write_bad(flaw: str, good: Path, path: Path) -> None:
    if flaw == "state dict":
        torch.save(create_model("mobileclip-nano").state_dict(), path)
    elif flaw == "other tensors":
        torch.save(torch.load(good, weights_only=True) | {"model": {"weight": torch.zeros(3)}}, path)
    elif flaw != "missing":
        content = {
            "empty": b"",
            "text": b"not a checkpoint",
            "code": pickle.dumps(Bomb()),
            "truncated": good.read_bytes()[:-50_000],
        }
        path.write_bytes(content[flaw])


@pytest.mark.parametrize("flaw", ["missing", "empty", "text", "code", "truncated", "state dict", "other tensors"])
def test_bad_checkpoints_are_refused(tmp_path: Path, student: Path, export: Export, flaw: str) -> None:
    write_bad(flaw, student, tmp_path / "bad.pt")
    before = sorted(tmp_path.iterdir())
    code, _, error = export("bad.pt", "out", "--format", "onnx")
    assert code == 2 and re.match(r"error: (checkpoint )?bad\.pt ", error), error
    assert sorted(tmp_path.iterdir()) == before, "something was written, or code ran"


@pytest.mark.slow
def test_a_bad_checkpoint_ends_the_process_without_a_traceback(tmp_path: Path, student: Path) -> None:
    write_bad("code", student, tmp_path / "bad.pt")
    done = run(tmp_path, "bad.pt", "out", "--format", "onnx")
    assert done.returncode == 2 and re.match(r"error: (checkpoint )?bad\.pt ", done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["bad.pt"]


def test_bad_arguments_are_refused(tmp_path: Path, student: Path, export: Export) -> None:
    for arguments, expected in (
        (("out.pt", "--format", "official"), "'siclip-nano' has SAS-P blocks"),
        (("out", "--format", "tflite"), "'tflite' is not one of"),
        (("out",), "--format"),
    ):
        code, _, error = export(student, *arguments)
        assert code == 2 and expected in error
    assert not list(tmp_path.iterdir())


def test_an_output_that_cannot_be_written_is_refused_before_the_model_is_read(
    tmp_path: Path, student: Path, export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(named: str) -> None:
        raise AssertionError("the checkpoint was read first")

    monkeypatch.setattr("siclip_platform.storage.checkpoints.read_model", read)
    (tmp_path / "file").write_text("")
    (tmp_path / "taken").mkdir()
    for format in ("onnx", "open_clip", "mlflow"):
        code, _, error = export(student, "file/new/out", "--format", format)
        assert code == 2 and f"{tmp_path}/file is not a folder" in error
        code, _, error = export(student, "taken", "--format", format)
        assert code == 2 and "taken exists and is not overwritten" in error
    code, _, error = export(student, "out.bin", "--format", "official")
    assert code == 2 and "is a .pt or .safetensors file" in error


def test_missing_folders_above_the_output_are_created(tmp_path: Path, student: Path, export: Export) -> None:
    code, out, error = export(student, "new/deep/out", "--format", "open_clip")
    assert code == 0, error
    assert "model card: new/deep/out/README.md" in out
    assert sorted(path.name for path in (tmp_path / "new/deep").iterdir()) == ["out"]
