"""Options of a study: paths, sizes, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from siclip.errors import UserError
from siclip_platform.storage.sizes import parse_bytes
from siclip_platform.studies.command_line import command_line
from siclip_platform.studies.options import Options, check_sharing


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["/a/jobs/tune_wikd.py", "--out", "my runs"], "python jobs/tune_wikd.py --out 'my runs'"),
        (["/venv/bin/siclip-platform", "tune", "--trials", "3"], "siclip-platform tune --trials 3"),
        (
            ["jobs/tune_wikd.py", "--tracking-uri", "http://u:secret@h", "--seed", "1"],
            "python jobs/tune_wikd.py --seed 1",
        ),
        (["jobs/tune_wikd.py", "--tracking-uri=http://u:secret@h"], "python jobs/tune_wikd.py"),
    ],
)
def test_the_command_line_is_shown_without_the_tracking_uri(arguments: list[str], command: str) -> None:
    assert command_line(arguments) == command


def test_sharing_patterns_are_checked_against_the_models_blocks() -> None:
    check = check_sharing("siclip-nano")
    assert check("model.image_sharing", "qk:0-0") is None
    assert check("model.text_sharing", "none") is None
    assert "2 numbers for 4 blocks" in check("model.text_sharing", "qk:0-0")
    assert check("loss.negatives", "qk:0-0") is None


@pytest.mark.parametrize(("text", "size"), [("20GB", 20 * 10**9), ("1.5 tb", 1.5e12), ("300MB", 3e8), ("7KB", 7000)])
def test_sizes(text: str, size: float) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["20", "GB", "20 GiB", "-1GB", "1e3MB"])
def test_a_text_that_is_not_a_size_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="for example 20GB"):
        parse_bytes(text)


def test_paths_are_absolute_and_uris_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = Options(out="runs", data="digits", teacher="file:///t.pt", checkpoints="s3://b/c", artifacts="files")
    assert (options.out, options.data, options.teacher) == (tmp_path / "runs", tmp_path / "digits", "/t.pt")
    (tmp_path / "weights.pt").touch()
    for tag, absolute in (("dfndr2b", "dfndr2b"), ("weights.pt", f"{tmp_path / 'weights.pt'}")):
        named = Options(out="runs", teacher=f"open_clip:MobileCLIP2-S0:{tag}")
        assert named.teacher == f"open_clip:MobileCLIP2-S0:{absolute}"
    assert (str(options.checkpoints), options.artifacts) == ("s3://b/c", (tmp_path / "files").as_uri())
    assert options.dataset_folder == tmp_path / "digits"
    assert Options(out="runs").dataset_folder == tmp_path / "runs" / "digit-scenes"


def test_an_option_that_does_not_exist_or_fit_is_refused(tmp_path: Path) -> None:
    for wrong in ({"trial": 3}, {"trials": 0}, {"backend": "threads"}):
        with pytest.raises(ValidationError, match=next(iter(wrong))):
            Options.model_validate({"out": tmp_path} | wrong)
