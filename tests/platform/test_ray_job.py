"""Every job through ``ray job submit`` on a local head with token authentication; no secret is written down."""

from __future__ import annotations

import base64
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from mlflow.environment_variables import _EnvironmentVariable

sys.path.insert(0, str(Path(__file__).parent))
from job_parts import CHECKS, Parts, make_parts
from ray_head import RAY, ROOT, ray_head

pytestmark = pytest.mark.slow
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|USERNAME|CREDENTIAL")
SECRETS = {  # of stores, of Hugging Face, and all of MLflow's
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN", "AZURE_STORAGE_KEY",
    "AZURE_STORAGE_ACCESS_KEY", "AZURE_STORAGE_CONNECTION_STRING", "GOOGLE_API_KEY", "DATABRICKS_TOKEN", "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    *(
        variable.name
        for variable in vars(mlflow.environment_variables).values()
        if isinstance(variable, _EnvironmentVariable) and variable.type is str and SECRET.search(variable.name)
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def env() -> Iterator[dict[str, str]]:
    """Each secret is one that MLflow takes for a key: 32 bytes in base64."""
    with ray_head({name: base64.urlsafe_b64encode(secrets.token_bytes(32)).decode() for name in SECRETS}) as env:
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


def test_a_submitted_search_leaves_its_study_and_no_secret(env: dict[str, str], parts: Parts) -> None:
    said = end_job(start_job(env, "tune_wikd", parts.words("tune_wikd")))
    CHECKS["tune_wikd"](parts, said)
    assert_no_secret_in(env, parts.folder, said, {"tune_wikd"})


@pytest.mark.long
def test_every_submitted_job_does_its_work(env: dict[str, str], parts: Parts) -> None:
    """All but the search at the same time; afterwards no secret is found in what they leave."""
    others = [name for name in CHECKS if name != "tune_wikd"]
    started = {name: start_job(env, name, parts.words(name)) for name in others}
    said = {name: end_job(job) for name, job in started.items()}
    for name in others:
        CHECKS[name](parts, said[name])
    assert_no_secret_in(env, parts.folder, "".join(said.values()), set(others))


@pytest.mark.long
@pytest.mark.parametrize("name", CHECKS)
def test_a_job_whose_code_is_sent_along(env: dict[str, str], parts: Parts, tmp_path: Path, name: str) -> None:
    for file in parts.folder.iterdir():
        if file.name != name:
            (tmp_path / file.name).symlink_to(file)
    sent = Parts(parts.digits, parts.teacher, tmp_path)
    CHECKS[name](sent, end_job(start_job(env, name, sent.words(name), *WORKING_DIR)))


def assert_no_secret_in(env: dict[str, str], out: Path, said: str, names: set[str]) -> None:
    """Neither in what the jobs said and wrote, nor in the head's logs, nor in what it tells about its jobs."""
    held = {env[name] for name in (*SECRETS, "RAY_AUTH_TOKEN")}
    listing = [sys.executable, "-c", JOBS]
    jobs = subprocess.run(listing, env=env, capture_output=True, text=True, timeout=120, check=True).stdout
    assert all(name in jobs for name in names)
    texts = {"output": said.encode(), "job metadata": jobs.encode()}
    files = [path for path in out.rglob("*") if path.is_file()]
    files += [path for path in Path(env["HEAD_FOLDER"]).rglob("*") if path.is_file() and path.parent.name == "logs"]
    assert {"mlflow.db", "report.html"} <= {path.name for path in files}
    texts |= {str(path): path.read_bytes() for path in files}
    found = {
        (place, line.replace(secret.encode(), b"SECRET")[:300])
        for place, text in texts.items()
        for secret in held
        for line in text.splitlines()
        if secret.encode() in line
    }
    assert not found


JOBS = """
from ray.job_submission import JobSubmissionClient
print([job.dict() for job in JobSubmissionClient().list_jobs()])
"""


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
