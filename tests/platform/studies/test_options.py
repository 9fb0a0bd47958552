from __future__ import annotations

from pathlib import Path

import pytest

from siclip.errors import UserError
from siclip_platform.cli.tune import resumed
from siclip_platform.studies.options import check_sharing, command_line, parse_bytes
from siclip_platform.studies.study_file import StudyFile
from tests.support.study_parts import base_recipe


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
def test_the_command_is_told_without_the_tracking_uri(arguments: list[str], command: str) -> None:
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
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="for example 20GB"):
        parse_bytes(text)


def test_a_study_that_is_not_there_cannot_be_gone_on_with(tmp_path: Path, digits: Path) -> None:
    for name, kind in (("first", "search"), ("second", "ablation")):
        StudyFile(
            name=name, kind=kind, key="k", base=base_recipe(digits), trials=4, seeds=2, sampler="gp", scheduler="pbt",
            tracking_uri="sqlite:////x.db",
        ).write(tmp_path / name)  # fmt: skip
    asked = {"out": tmp_path, "address": None, "verbose": False, "concurrent": None}
    with pytest.raises(UserError, match=r"no study 'third'.*there are first, second"):
        resumed("third", None, asked, None)
    with pytest.raises(UserError, match="kind ablation, not search"):
        resumed("second", None, asked, None)
    options, base = resumed("first", 9, asked, None)
    assert (options.trials, options.seeds, options.resume, base) == (9, 2, "first", base_recipe(digits))
    assert options.space == str(tmp_path / "first" / "space.yaml")
    assert (options.sampler, options.scheduler) == ("gp", "pbt")
