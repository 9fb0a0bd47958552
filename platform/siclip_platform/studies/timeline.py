"""How long the parts of a job took, written beside its outputs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SPANS_FILE = "timeline.json"


class Timeline:
    """Named spans of wall time in seconds. Spans do not overlap: concurrent parts share one."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    def write(self, folder: Path) -> None:
        (folder / SPANS_FILE).write_text(json.dumps(self.seconds, indent=2) + "\n")
