"""``ray job submit -- python jobs/tune_wikd.py`` on a local head with token authentication."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

from siclip_platform.tracking import default_tracking_uri

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
CPUS = re.findall(r"--num-cpus=\d+", (ROOT / "Makefile").read_text())[0]  # of `make head`, as the README says
SECRETS = ("MLFLOW_TRACKING_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN")
RAY = [sys.executable, "-m", "ray.scripts.scripts"]


def free_ports(count: int) -> list[int]:
    """Different ports: each is held until all are found."""
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


@pytest.fixture(scope="module")
def env() -> Iterator[dict[str, str]]:
    """A head on ports and in a temp directory of its own, and the environment that reaches it."""
    scripts = Path(sys.executable).parent
    port, dashboard, client, agent = free_ports(4)
    env = {
        **os.environ,
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        **{name: f"{name.lower()}-{secrets.token_hex(16)}" for name in SECRETS},
    }
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        command = [
            *RAY, "start", "--head", "--block", CPUS, f"--port={port}",
            f"--dashboard-port={dashboard}", f"--temp-dir={folder}", f"--ray-client-server-port={client}",
            f"--dashboard-agent-listen-port={agent}",
        ]  # fmt: skip
        with (Path(folder) / "head.log").open("w") as log:
            head = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log, start_new_session=True)
        try:
            wait_for(f"http://127.0.0.1:{dashboard}/api/version", head, Path(folder) / "head.log")
            yield {**env, "RAY_ADDRESS": f"http://127.0.0.1:{dashboard}", "HEAD_FOLDER": folder}
        finally:
            head.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                head.wait(timeout=20)
            for process in head_processes(folder):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)


def head_processes(folder: str) -> list[int]:
    """What the head left behind: processes whose command line names its temp directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if folder.encode() in command:
                found.append(int(entry.name))
    return found


def wait_for(url: str, head: subprocess.Popen, log: Path) -> None:
    for _ in range(120):
        assert head.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except urllib.error.HTTPError:
            return  # it answers, and wants the token
        except OSError:
            time.sleep(1)
    raise AssertionError(log.read_text())


def test_a_submitted_job_leaves_its_study_in_mlflow(
    env: dict[str, str], digits: Path, nano_teacher: Path, tmp_path: Path
) -> None:
    job = ["--out", str(tmp_path), "--data", str(digits), "--teacher", str(nano_teacher), "--trials", "2"]
    command = [*RAY, "job", "submit", "--", "python", "jobs/tune_wikd.py", *job, "--steps", "12"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=560, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    client = mlflow.MlflowClient(tracking_uri=default_tracking_uri(tmp_path))
    experiment = client.get_experiment_by_name("siclip")
    kinds = [run.data.tags["siclip.kind"] for run in client.search_runs([experiment.experiment_id])]
    assert sorted(kinds) == ["best", "control", "study", "trial", "trial"]
    assert (tmp_path / "report.html").is_file()
    assert_no_secret_in(env, tmp_path, done.stdout + done.stderr)


def assert_no_secret_in(env: dict[str, str], out: Path, said: str) -> None:
    """Neither in what the job said and wrote, nor in the head's logs, nor in what it tells about its jobs."""
    held = {env[name] for name in (*SECRETS, "RAY_AUTH_TOKEN")}
    listing = [sys.executable, "-c", JOBS]
    jobs = subprocess.run(listing, env=env, capture_output=True, text=True, timeout=120, check=True).stdout
    assert "tune_wikd" in jobs
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
