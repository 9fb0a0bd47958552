"""A report that follows a running study."""

from __future__ import annotations

import time
from collections.abc import Callable

from siclip_platform.report.page import ReportPaths


def follow(
    make: Callable[[], ReportPaths],
    seconds: float,
    said: Callable[[ReportPaths], None],
    wait: Callable[[float], None] = time.sleep,
) -> ReportPaths:
    """Make the report again and again, ``seconds`` apart, until no study of it is running; returns the last."""
    while True:
        started = time.monotonic()
        paths = make()
        if not paths.running:
            return paths
        said(paths)
        wait(max(0.0, seconds - (time.monotonic() - started)))
