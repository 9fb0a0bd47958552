"""The command that started this process, as it may be shown and stored."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

HIDDEN = "--tracking-uri"  # its URI may hold a password


def command_line(arguments: Sequence[str]) -> str:
    """``sys.argv`` as a shell command, without the tracking URI."""
    program = Path(arguments[0])
    start = ["python", f"jobs/{program.name}"] if program.parent.name in ("jobs", "_jobs") else ["siclip-platform"]
    kept: list[str] = []
    rest = iter(arguments[1:])
    for argument in rest:
        if argument == HIDDEN:
            next(rest, None)
        elif not argument.startswith(f"{HIDDEN}="):
            kept.append(argument)
    return shlex.join([*start, *kept])
