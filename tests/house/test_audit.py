"""scripts/audit.py: vulnerabilities are listed; if nothing can be audited, the age of the lock is reported."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

import audit  # noqa: E402

FLAW = {"id": "PYSEC-2026-1", "fix_versions": ["2.1", "3.0"], "aliases": [], "description": "long"}
FOUND = {
    "dependencies": [
        {"name": "good", "version": "1.0", "vulns": []},
        {"name": "bad", "version": "2.0", "vulns": [FLAW, FLAW | {"id": "PYSEC-2026-2", "fix_versions": []}]},
        {"name": "elsewhere", "skip_reason": "not on the index"},
    ]
}


def printing(content: str) -> list[str]:
    """A command in place of pip-audit that prints ``content`` and fails."""
    code = f"import sys; print({content!r}); print('host.example', file=sys.stderr); sys.exit(3)"
    return [sys.executable, "-c", code]


def test_vulnerabilities_are_listed_and_fail_only_when_strict(capsys: pytest.CaptureFixture[str]) -> None:
    assert audit.judge(printing(json.dumps(FOUND)), strict=False) == 0
    assert capsys.readouterr().out.splitlines() == [
        "audit: bad 2.0: PYSEC-2026-1, fixed in 2.1, 3.0",
        "audit: bad 2.0: PYSEC-2026-2, fixed in no version yet",
        "audit: 3 pins, 2 known vulnerabilities",
    ]
    assert audit.judge(printing(json.dumps(FOUND)), strict=True) == 1
    clean = {"dependencies": FOUND["dependencies"][:1]}
    assert audit.judge(printing(json.dumps(clean)), strict=True) == 0


@pytest.mark.parametrize("content", ["", "ERROR: no connection", "{}"])
def test_a_failed_audit_reports_the_age(content: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit.judge(printing(content), strict=False) == 0
    printed = capsys.readouterr()
    assert "(pip-audit ended with exit code 3)" in printed.out and "days old" in printed.out
    assert "host.example" not in printed.out + printed.err
    assert audit.judge(printing(content), strict=True) == 1


def test_pip_audit_supports_the_options() -> None:
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(audit.LOCK), *audit.OPTIONS, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {option for option in (*audit.OPTIONS, "--requirement") if option.startswith("--")} <= set(
        re.findall(r"--[\w-]+", done.stdout)
    )


def test_an_audit_that_takes_too_long_is_stopped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(audit, "SECONDS", 1)
    assert audit.judge([sys.executable, "-c", "import time; time.sleep(60)"], strict=True) == 1
    printed = capsys.readouterr().out
    assert "no advisories available (pip-audit took more than 1 seconds); the pins of requirements.lock" in printed


def test_the_age_is_that_of_the_locks_last_commit_or_of_the_file(tmp_path: Path) -> None:
    lock = tmp_path / "requirements.lock"
    lock.write_text("a==1\n")
    os.utime(lock, (datetime(2026, 1, 2, tzinfo=UTC).timestamp(),) * 2)
    now = datetime(2026, 1, 12, tzinfo=UTC)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
        assert audit.age(lock, now) == "the pins of requirements.lock are of 2026-01-02, 10 days old"
    day = {"GIT_COMMITTER_DATE": "2026-01-05T00:00:00+00:00", "GIT_AUTHOR_DATE": "2026-01-05T00:00:00+00:00"}
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "lock"]):
        subprocess.run([*git, *words], check=True, env={**os.environ, **day})
    assert audit.age(lock, now) == "the pins of requirements.lock are of 2026-01-05, 7 days old"


def test_make_check_audits() -> None:
    done = subprocess.run(["make", "-n", "check"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "scripts/audit.py" in done.stdout and "mypy" in done.stdout
