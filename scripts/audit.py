"""Check the pinned dependencies for known vulnerabilities; without a network, report the age of the pins.

    python scripts/audit.py [--strict]

Queries the Python Package Index for each pin in requirements.lock through pip-audit and lists the vulnerabilities.
The exit code is 1 only with --strict, if there are vulnerabilities or nothing could be audited: pins are raised by
hand (make lock), after a fix is released.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

LOCK = Path(__file__).resolve().parents[1] / "requirements.lock"
# Limit for the whole audit; make check runs it in parallel to mypy.
SECONDS = 60
OPTIONS = ("--disable-pip", "--require-hashes", "--format", "json", "--progress-spinner", "off", "--timeout", "5")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--strict", action="store_true", help="exit code 1 if there are vulnerabilities or nothing was audited"
    )
    options = parser.parse_args(arguments)
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(LOCK), *OPTIONS]
    return judge(command, strict=options.strict)


def judge(command: Sequence[str], *, strict: bool) -> int:
    """Run pip-audit, print one line per vulnerability, and return the exit code."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return nothing_audited(f"pip-audit took more than {SECONDS} seconds", strict)
    try:
        dependencies = json.loads(done.stdout)["dependencies"]
    except (json.JSONDecodeError, KeyError):
        return nothing_audited(f"pip-audit ended with exit code {done.returncode}", strict)
    found = [
        f"audit: {entry['name']} {entry['version']}: {flaw['id']}, "
        f"fixed in {', '.join(flaw['fix_versions']) or 'no version yet'}"
        for entry in dependencies
        for flaw in entry.get("vulns", ())
    ]
    print("\n".join([*found, f"audit: {len(dependencies)} pins, {len(found)} known vulnerabilities"]))
    return int(strict and bool(found))


def nothing_audited(reason: str, strict: bool) -> int:
    """Report that nothing was audited; the exit code."""
    # pip-audit's own output is not shown, because it may contain a host name.
    print(f"audit: no advisories available ({reason}); {age(LOCK, datetime.now(UTC))}")
    return int(strict)


def age(lock: Path, now: datetime) -> str:
    """The age of the pins, from the lock's last commit, or from its modification time if there is no history."""
    command = ["git", "-C", str(lock.parent), "log", "-1", "--format=%cI", "--", lock.name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    text = done.stdout.strip()
    day = datetime.fromisoformat(text) if text else datetime.fromtimestamp(lock.stat().st_mtime, UTC)
    return f"the pins of {lock.name} are of {day:%Y-%m-%d}, {(now - day).days} days old"


if __name__ == "__main__":
    sys.exit(main())
