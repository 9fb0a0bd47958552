"""Composing submissions; test_ray_job.py runs them on a cluster."""

from __future__ import annotations

import shlex
import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from siclip.errors import UserError
from siclip_platform.cli import app
from siclip_platform.cluster.submit import compose, submit

ROOT = Path(__file__).resolve().parents[3]


def test_code_and_arguments_are_submitted_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    found = compose("tune_wikd", ["--out", "/a b/$(c)"], address=None, tracking_uri="http://m:5000", installed=False)
    command = ["python", "jobs/tune_wikd.py", "--out", "/a b/$(c)", "--tracking-uri", "http://m:5000"]
    assert shlex.split(found.entrypoint) == command
    assert found.runtime_env["working_dir"] == str(ROOT)
    assert found.runtime_env["env_vars"] == {"PYTHONPATH": "platform"}
    assert {"/.git", "/.venv", "/runs"} <= set(found.runtime_env["excludes"])
    assert found.address == "http://127.0.0.1:8265"


def test_an_installed_cluster_gets_no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")
    found = compose("tune_wikd.py", [], address=None, tracking_uri=None, installed=True)
    assert found.runtime_env == {}
    assert found.address == "http://head:8265"
    words = shlex.split(found.entrypoint)
    assert words[:3] == ["python", "-m", "siclip_platform"]
    monkeypatch.setattr("sys.argv", [])
    result = CliRunner().invoke(app, [*words[3:], "--trials", "0"])
    assert result.exit_code == 2 and "--trials" in result.output  # the job's own options are read


def test_an_unknown_job_is_refused_with_the_list_of_jobs() -> None:
    with pytest.raises(UserError, match=r"there are .*tune_wikd"):
        compose("tune_wikid", [], address=None, tracking_uri=None, installed=False)


@pytest.mark.parametrize(
    ("arguments", "uri"),
    [
        ([], "http://me:hunter2@server:5000"),
        (["--tracking-uri=http://me:hunter2@server:5000"], None),
        (["--tracking-uri", "https://me:hunter2@server"], None),
        (["--set", "data.path=https://me:hunter2@[::1]:80/x"], None),
        (["--set=data.path=gs://me:hunt,hunter2@h/x"], None),
    ],
)
def test_a_password_in_a_url_is_refused(arguments: list[str], uri: str | None) -> None:
    with pytest.raises(UserError, match="password") as caught:
        compose("tune_wikd", arguments, address=None, tracking_uri=uri, installed=False)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "argument",
    [
        "data.path=abfs://c@account/x?sas_token=hunter2",
        "data.mix=[{path: s3://a/b}, {path: s3://key:hunter2@b/c}]",
        "data.mix=[{path: s3://a},{path: s3://b?secret_key=hunter2}]",
    ],
)
def test_the_keys_of_a_store_are_refused(argument: str) -> None:
    with pytest.raises(UserError, match="was given with credentials") as caught:
        compose("tune_wikd", ["--set", argument], address=None, tracking_uri=None, installed=False)
    assert "hunter2" not in str(caught.value)


def test_uris_without_secrets_are_accepted() -> None:
    arguments = ["--data", "s3://a/b?region=x", "--set", "data.mix=[{path: hf://a/b@main}]", "--x=http://[::1]:8"]
    found = compose("tune_wikd", arguments, address=None, tracking_uri="http://me@server:5000", installed=False)
    assert shlex.split(found.entrypoint)[2:-2] == arguments


def test_a_job_without_runs_accepts_no_tracking_uri() -> None:
    with pytest.raises(UserError, match="prepare_cc12m_syn makes no runs and takes no --tracking-uri"):
        compose("prepare_cc12m_syn", ["cc"], address=None, tracking_uri="http://m:5000", installed=False)


def test_a_missing_cluster_is_reported_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
        free.close()
    submission = compose("tune_wikd", [], address=address, tracking_uri=None, installed=False)
    with pytest.raises(UserError, match="no Ray cluster at"):
        submit(submission, print)
    result = CliRunner().invoke(app, ["submit", "tune_wikd", "--address", address, "--trials", "2"])
    assert isinstance(result.exception, UserError)
