"""Every job through ``ray job submit`` on a local head with token authentication; no secret is written down."""

from __future__ import annotations

import re
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from job_parts import CHECKS, Parts, make_parts
from ray_head import RAY, ROOT, ray_head
from secret_parts import assert_no_secret_in, new_secrets

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def env() -> Iterator[dict[str, str]]:
    with ray_head(new_secrets()) as env:
        yield env


@pytest.fixture(scope="module")
def parts(digits: Path, nano_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return make_parts(digits, nano_teacher, tmp_path_factory.mktemp("jobs"))


WORKING_DIR = ["--working-dir", ".", "--runtime-env", "jobs/runtime_env.yaml"]


def start_job(env: dict[str, str], job: str, words: list[str], *options: str) -> subprocess.Popen[str]:
    command = [*RAY, "job", "submit", *options, "--", "python", f"jobs/{job}.py", *words]
    out = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=out, stderr=subprocess.STDOUT, text=True)


def end_job(job: subprocess.Popen[str]) -> str:
    said, _ = job.communicate(timeout=560)
    assert job.returncode == 0, said[-5000:]
    return said


def test_every_job_is_tried() -> None:
    assert set(CHECKS) == {path.stem for path in (ROOT / "jobs").glob("*.py")}


def test_every_submitted_job_does_its_work(env: dict[str, str], parts: Parts) -> None:
    """At the same time, one with its code sent along; the search is in test_demo.py."""
    names = [name for name in CHECKS if name != "tune_wikd"]
    sent = {"evaluate_siclip": WORKING_DIR}
    started = {name: start_job(env, name, parts.words(name), *sent.get(name, [])) for name in names}
    said = {name: end_job(job) for name, job in started.items()}
    for name in names:
        CHECKS[name](parts, said[name])
    assert_no_secret_in(env, parts.folder, "".join(said.values()), set(names))


@pytest.mark.long
@pytest.mark.parametrize("name", CHECKS)
def test_a_job_whose_code_is_sent_along(env: dict[str, str], parts: Parts, tmp_path: Path, name: str) -> None:
    for file in parts.folder.iterdir():
        if file.name != name:
            (tmp_path / file.name).symlink_to(file)
    sent = Parts(parts.digits, parts.teacher, tmp_path)
    said = end_job(start_job(env, name, sent.words(name), *WORKING_DIR))
    assert "_ray_pkg_" in said
    CHECKS[name](sent, said)


def submit(env: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "siclip_platform", "submit", *arguments]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)


def test_submit_sends_the_code_and_follows_the_job(env: dict[str, str]) -> None:
    """The space is looked for beside the code, so the message shows which copy of it ran."""
    done = submit(env, "tune_wikd", "--space", "no-such-space")
    assert done.returncode == 1, done.stdout + done.stderr
    said = done.stdout.partition("error:")[2]
    assert "no-such-space" in said
    assert re.search(r"_ray_pkg_\w+/search_spaces", said), said
    assert "status: FAILED" in done.stdout
    assert env["RAY_AUTH_TOKEN"] not in done.stdout + done.stderr


def test_submit_names_the_token_when_it_is_wrong(env: dict[str, str]) -> None:
    wrong = {**env, "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    done = submit(wrong, "tune_wikd")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "refuses the token" in done.stderr
    assert wrong["RAY_AUTH_TOKEN"] not in done.stdout + done.stderr


def test_a_wrong_token_is_refused(env: dict[str, str]) -> None:
    wrong = {**env, "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    command = [*RAY, "job", "submit", "--", "python", "jobs/tune_wikd.py"]
    done = subprocess.run(command, cwd=ROOT, env=wrong, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0
    assert "token" in (done.stdout + done.stderr).lower()
