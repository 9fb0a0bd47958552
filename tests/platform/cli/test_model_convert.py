"""``siclip-platform model convert``: other sharing patterns, file formats, and bad input."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import siclip
from siclip.checkpoints.formats import load_model, read_checkpoint, save_checkpoint
from siclip.checkpoints.layouts import to_official
from siclip.models import Clip, count_parameters, create_model
from siclip_platform.cli import main
from tests.support.open_clip_parts import TAG, nano_behind_the_tag


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch bombed",)


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def convert(*arguments: str, code: int = 0) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", ["siclip-platform", "model", "convert", *arguments])
        main()
    assert ended.value.code == code


def model_of(seed: int, image: str = "none", text: str = "none", **options: Any) -> Clip:
    torch.manual_seed(seed)
    model = create_model("siclip-nano", image_sharing=image, text_sharing=text, text={"vocab_size": 64}, **options)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn(parameter.shape) * 0.1)
    return model.eval()


def embeddings(model: Clip) -> torch.Tensor:
    torch.manual_seed(0)
    with torch.no_grad():
        return torch.cat(model.eval()(torch.rand(2, 3, 64, 64), torch.randint(1, 60, (2, 20))))


def test_a_model_is_written_with_other_patterns(capsys: pytest.CaptureFixture[str]) -> None:
    source = model_of(0)
    save_checkpoint(Path("in.pt"), source, {"step": 3})
    convert("in.pt", "out.pt", "--text-sharing", "qk:0-0-1-1", "--how", "first")
    converted = load_model(Path("out.pt"))
    assert (converted.config.image.sharing, converted.config.text.sharing) == ("none", "qk:0-0-1-1")
    assert read_checkpoint(Path("out.pt"))["training"] is None
    theirs, ours = source.text_encoder.blocks, converted.text_encoder.blocks
    for block, owner in enumerate((0, 0, 2, 2)):
        assert torch.equal(ours[block].qk.query.weight, theirs[owner].qk.query.weight)  # type: ignore[union-attr]
        assert torch.equal(ours[block].alpha, theirs[block].alpha)  # type: ignore[arg-type]
    printed = capsys.readouterr().out
    assert "text sharing: none → qk:0-0-1-1" in printed
    assert f"parameters: {count_parameters(source):,} → {count_parameters(converted):,}" in printed


def test_blocks_that_newly_share_get_the_average_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    source = model_of(0)
    save_checkpoint(Path("in.pt"), source)
    convert("in.pt", "out.pt", "--image-sharing", "mlp:0-0")
    first, second = (block.mlp.fc1.weight for block in source.image_encoder.blocks)  # type: ignore[union-attr]
    shared = load_model(Path("out.pt")).image_encoder.blocks[1].mlp.fc1.weight  # type: ignore[union-attr]
    torch.testing.assert_close(shared, (first + second) / 2)
    assert "image sharing: none → mlp:0-0" in capsys.readouterr().out


def test_blocks_that_no_longer_share_compute_the_same() -> None:
    source = model_of(0, "block:0-0", "mlp:0-1-0-1")
    save_checkpoint(Path("in.pt"), source)
    convert("in.pt", "flat.safetensors", "--image-sharing", "none", "--text-sharing", "none")
    converted = load_model(Path("flat.safetensors"))
    assert count_parameters(converted) > count_parameters(source)
    assert torch.equal(embeddings(converted), embeddings(source))


def test_another_file_format_does_not_change_the_model() -> None:
    source = model_of(0, "qk:0-0", "block:0-0-0-0")
    save_checkpoint(Path("in.pt"), source)
    convert("in.pt", "there.safetensors")
    convert("there.safetensors", "back.pt")
    back = siclip.load_model(Path("back.pt"))
    assert back.config == source.config
    assert all(torch.equal(value, back.state_dict()[name]) for name, value in source.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["in.pt", "in.pt"], "in.pt exists: choose another file"),
        (["in.pt", "nowhere/out.pt"], "the folder nowhere does not exist"),
        (["in.pt", "out.bin"], "ends in .pt or .safetensors"),
        (["missing.pt", "out.pt"], "missing.pt does not exist"),
        (["in.pt", "out.pt", "--image-sharing", "qk:0-0-0"], "3 numbers for 2 blocks"),
        (["in.pt", "out.pt", "--text-sharing", "kq:0-0-0-0"], "unknown part 'kq'"),
        (["teacher.pt", "out.pt", "--text-sharing", "qk:0-0-1-1"], "text tower has no SAS-P blocks"),
        (["in.pt", "out.pt", "--how", "mean"], "'mean' is not one of"),
    ],
)
def test_bad_arguments_are_refused(
    arguments: list[str], message: str, nano_teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_checkpoint(Path("in.pt"), model_of(0))
    Path("teacher.pt").symlink_to(nano_teacher)
    before = Path("in.pt").read_bytes()
    convert(*arguments, code=2)
    assert message in re.sub(r"[\s│]+", " ", capsys.readouterr().err)
    assert Path("in.pt").read_bytes() == before and not Path("out.pt").exists()


def saved(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("truncated.pt", "truncated, or a different"),
        ("truncated.safetensors", "truncated, or a different"),
        ("empty.pt", "is empty"),
        ("code.pt", "would run code"),
        ("official.pt", "is not a siclip checkpoint"),
    ],
)
def test_bad_checkpoints_are_refused(
    tmp_path: Path, name: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The one that would run code is read in another process."""
    path = Path(name)
    if path.stem == "truncated":
        save_checkpoint(path, model_of(0))
    content = {
        "truncated": lambda: path.read_bytes()[:-1000],
        "empty": lambda: b"",
        "code": lambda: saved({"model": Bomb()}),
        "official": lambda: saved({"image_encoder.model.patch_embed.0.a": torch.ones(2)}),
    }[path.stem]()
    path.write_bytes(content)
    if path.stem == "code":
        command = [sys.executable, "-m", "siclip_platform", "model", "convert", name, "out.pt"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 2, done.stdout + done.stderr
        error = done.stderr
    else:
        convert(name, "out.pt", code=2)
        error = capsys.readouterr().err
    assert error.startswith(f"error: {name}" if "empty" not in name else f"error: checkpoint {name}")
    assert message in error and "Traceback" not in error and len(error.splitlines()) == 1
    assert not Path("out.pt").exists() and not Path("bombed").exists()


def test_a_file_of_another_project_becomes_a_checkpoint() -> None:
    torch.manual_seed(0)
    source = create_model("mobileclip-nano").eval()
    torch.save(to_official(source), "official.pt")
    convert("official.pt", "converted.pt", code=2)
    convert("official.pt", "converted.pt", "--model", "mobileclip-nano")
    assert torch.equal(embeddings(load_model("converted.pt")), embeddings(source))


def test_open_clips_tag_becomes_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = nano_behind_the_tag(tmp_path, monkeypatch)
    convert(TAG, "converted.pt")
    out = capsys.readouterr().out
    assert "images: shorter side to 64 px (bilinear), centre crop, values in [0, 1], mean 0" in out
    assert "(open_clip's config of MobileCLIP2-S0:dfndr2b)" in out
    assert torch.equal(embeddings(load_model("converted.pt")), embeddings(source))
    stored = read_checkpoint("converted.pt")["preprocessing"]
    assert (stored["mean"], stored["std"], stored["interpolation"]) == ([0, 0, 0], [1, 1, 1], "bilinear")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", ["siclip-platform", "model", "describe", TAG, "--json"])
        main()
    assert ended.value.code == 0
    assert json.loads(capsys.readouterr().out)["total"]["parameters"] == count_parameters(source)
    for options in (("--model", "mobileclip2-nano"), ("--text-sharing", "qk:0-0-1-1")):
        convert(TAG, "other.pt", *options, code=2)
        assert "omit --model and the sharing patterns" in capsys.readouterr().err


def test_a_file_name_that_cannot_be_written_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    save_checkpoint("in.pt", model_of(0))
    convert("in.pt", f"{'x' * 300}.pt", code=2)
    assert "File name too long" in capsys.readouterr().err
