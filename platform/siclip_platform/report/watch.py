"""Update a report while its study runs."""

from __future__ import annotations

import time
from collections.abc import Callable

from siclip_platform.report.page import ReportPaths


def follow(
    make: Callable[[], ReportPaths],
    seconds: float,
    announce: Callable[[ReportPaths], None],
    wait: Callable[[float], None] = time.sleep,
) -> ReportPaths:
    """Make the report at an interval until none of its studies is running, and return the last one.

    Args:
        make: Writes the report.
        seconds: Time from the start of one report to the start of the next.
        announce: Called after each report of a running study.
        wait: Sleeps for a number of seconds.
    """
    while True:
        # Monotonic, because the system's clock may be changed while a study runs.
        started = time.monotonic()
        paths = make()
        if not paths.running:
            return paths
        announce(paths)
        wait(max(0.0, seconds - (time.monotonic() - started)))
