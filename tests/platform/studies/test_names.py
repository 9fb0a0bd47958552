"""A study's name is a folder inside the output folder, wherever the name comes from."""

from __future__ import annotations

import runpy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from typer.testing import CliRunner

from siclip.errors import UserError
from siclip_platform.cli import app
from siclip_platform.studies.options import Options, check_study_name
from siclip_platform.studies.session import _new_name, open_experiment
from siclip_platform.tracking import default_tracking_uri
from siclip_platform.tracking.names import names_in
from siclip_platform.tracking.store import EXPERIMENT, open_store

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


def test_studies_that_begin_together_in_different_folders_get_different_names(
    tmp_path: Path, mlflow_database: bytes
) -> None:
    (tmp_path / "mlflow.db").write_bytes(mlflow_database)
    uri = default_tracking_uri(tmp_path)
    together = Barrier(3)

    def begin(number: int) -> str:
        options = Options(out=tmp_path / str(number))
        options.out.mkdir()
        together.wait()
        return _new_name("s", uri, options)

    with ThreadPoolExecutor(3) as threads:
        names = list(threads.map(begin, range(3)))
    assert sorted(names) == ["s", "s-2", "s-3"]
    assert all(
        [path.name for path in (tmp_path / str(number)).iterdir()] == [name] for number, name in enumerate(names)
    )
    client, experiment = open_store(uri, EXPERIMENT, None)
    assert client.search_runs([experiment]) == [], "claims are not shown"
    assert names_in(client, experiment) == set(names)
