"""A study's name is a folder inside the output folder, wherever the name comes from."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from typer.testing import CliRunner

from siclip.errors import UserError
from siclip_platform.cli import app
from siclip_platform.studies.options import Options, check_study_name
from siclip_platform.studies.session import open_experiment

OUTSIDE = ("../escape", "/tmp/escape", "..", ".", "", "a/b", "a\\b", ".hidden", "a\0b", "a\nb", "x" * 101)


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_that_leads_elsewhere_is_refused_before_anything_is_written(name: str, tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match="cannot name a folder in --out"),
        open_experiment(Options(out=tmp_path / "out"), name),
    ):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["wikd", "wikd-2", "my study", "größe 1.5", "x" * 100])
def test_other_names_are_taken(name: str) -> None:
    check_study_name(name)


def test_the_commands_refuse_it(digits: Path, tmp_path: Path) -> None:
    train = runpy.run_path(str(Path(__file__).resolve().parents[3] / "jobs" / "train_siclip.py"))["app"]
    named = ["--recipe", "digits-teacher", "--data", str(digits), "--name", "../escape"]
    out = ["--out", str(tmp_path / "out")]
    for program, command in ((train, named), (train, ["--resume", "../escape"]), (app, ["tune", "--resume", "../e"])):
        error = CliRunner().invoke(program, [*command, *out]).exception
        assert isinstance(error, UserError) and "cannot name a folder in --out" in str(error)
    assert not list(tmp_path.iterdir())
