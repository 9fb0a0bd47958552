"""Every job through ``ray job submit`` on a local head with token authentication; no secret is stored."""

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


def start_job(env: dict[str, str], job: str, arguments: list[str], *options: str) -> subprocess.Popen[str]:
    command = [*RAY, "job", "submit", *options, "--", "python", f"jobs/{job}.py", *arguments]
    out = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=out, stderr=subprocess.STDOUT, text=True)


def end_job(job: subprocess.Popen[str]) -> str:
    output, _ = job.communicate(timeout=560)
    assert job.returncode == 0, output[-5000:]
    return output


def test_every_job_has_a_check() -> None:
    assert set(CHECKS) == {path.stem for path in (ROOT / "jobs").glob("*.py")}


def test_every_submitted_job_succeeds(env: dict[str, str], parts: Parts) -> None:
    """All at a time, one of them with this checkout's code; the search is in test_demo.py."""
    names = [name for name in CHECKS if name != "tune_wikd"]
    with_code = {"evaluate_siclip": WORKING_DIR}
    started = {name: start_job(env, name, parts.words(name), *with_code.get(name, [])) for name in names}
    outputs = {name: end_job(job) for name, job in started.items()}
    for name in names:
        CHECKS[name](parts, outputs[name])
    assert_no_secret_in(env, parts.folder, "".join(outputs.values()), set(names))


@pytest.mark.long
@pytest.mark.parametrize("name", CHECKS)
def test_a_job_with_this_checkouts_code(env: dict[str, str], parts: Parts, tmp_path: Path, name: str) -> None:
    for file in parts.folder.iterdir():
        if file.name != name:
            (tmp_path / file.name).symlink_to(file)
    own = Parts(parts.digits, parts.teacher, tmp_path)
    output = end_job(start_job(env, name, own.words(name), *WORKING_DIR))
    assert "_ray_pkg_" in output
    CHECKS[name](own, output)


def submit(env: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "siclip_platform", "submit", *arguments]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)


def test_submit_sends_the_code_and_follows_the_job(env: dict[str, str]) -> None:
    """The space is searched for beside the code, so the message shows which copy ran."""
    done = submit(env, "tune_wikd", "--space", "no-such-space")
    assert done.returncode == 1, done.stdout + done.stderr
    message = done.stdout.partition("error:")[2]
    assert "no-such-space" in message
    assert re.search(r"_ray_pkg_\w+/search_spaces", message), message
    assert "status: FAILED" in done.stdout
    assert env["RAY_AUTH_TOKEN"] not in done.stdout + done.stderr


def test_submit_reports_a_wrong_token(env: dict[str, str]) -> None:
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
