"""Look for known vulnerabilities of the pinned dependencies; without a network, say how old the pins are.

    python scripts/audit.py [--strict]

Asks the Python Package Index about each pin of requirements.lock through pip-audit. What is found is listed. It ends
with exit code 1 only under --strict, where something is found or nothing could be audited: a pin is raised by hand
(make lock), after its fix was released.
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
SECONDS = 60  # of the whole audit; make check runs it beside mypy
OPTIONS = ("--disable-pip", "--require-hashes", "--format", "json", "--progress-spinner", "off", "--timeout", "5")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--strict", action="store_true", help="exit code 1 where something is found, or nothing audited"
    )
    options = parser.parse_args(arguments)
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(LOCK), *OPTIONS]
    return judge(command, strict=options.strict)


def judge(command: Sequence[str], *, strict: bool) -> int:
    """Run pip-audit and print what it found, a line each; the exit code."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return nothing_had(f"pip-audit took more than {SECONDS} seconds", strict)
    try:
        dependencies = json.loads(done.stdout)["dependencies"]
    except (json.JSONDecodeError, KeyError):
        return nothing_had(f"pip-audit ended with exit code {done.returncode}", strict)
    found = [
        f"audit: {entry['name']} {entry['version']}: {flaw['id']}, "
        f"fixed in {', '.join(flaw['fix_versions']) or 'no version yet'}"
        for entry in dependencies
        for flaw in entry.get("vulns", ())
    ]
    print("\n".join([*found, f"audit: {len(dependencies)} pins, {len(found)} known vulnerabilities"]))
    return int(strict and bool(found))


def nothing_had(reason: str, strict: bool) -> int:
    """What pip-audit itself says stays untold: it may name a host."""
    print(f"audit: no advisories could be had ({reason}); {age(LOCK, datetime.now(UTC))}")
    return int(strict)


def age(lock: Path, now: datetime) -> str:
    """How old the pins are: the day of the lock's last commit, or of the file where there is no history."""
    command = ["git", "-C", str(lock.parent), "log", "-1", "--format=%cI", "--", lock.name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    text = done.stdout.strip()
    day = datetime.fromisoformat(text) if text else datetime.fromtimestamp(lock.stat().st_mtime, UTC)
    return f"the pins of {lock.name} are of {day:%Y-%m-%d}, {(now - day).days} days old"


if __name__ == "__main__":
    sys.exit(main())
