"""Options of a study: paths, sizes, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from siclip.errors import UserError
from siclip_platform.spaces import load_space
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


@pytest.mark.parametrize("name", ["wikd", "sharing_patterns"])
def test_students_with_twelve_text_blocks_have_spaces_of_their_own(name: str) -> None:
    twelve = load_space(f"{name}_siclip2", check_value=check_sharing("siclip2-s0"))
    four = load_space(name, check_value=check_sharing("siclip-s0"))
    for wrong, model in ((name, "siclip2-s0"), (f"{name}_siclip2", "siclip-s0")):
        with pytest.raises(UserError) as refused:
            load_space(wrong, check_value=check_sharing(model))
        lines = [line for line in str(refused.value).splitlines() if "sharing pattern" in line]
        assert len(lines) == 5 and all(
            f"{wrong}.yaml:" in line and "write 'none' or PART:0-0-1-1" in line for line in lines
        )
        assert ("--space wikd_siclip2 and sharing_patterns_siclip2" in lines[0]) == (model == "siclip2-s0")
    same = [[each for each in space.parameters if each.path != "model.text_sharing"] for space in (twelve, four)]
    assert same[0] == same[1] and len(twelve.parameters) == len(four.parameters) == len(same[0]) + 1


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
