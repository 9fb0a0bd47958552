"""The load of the driver's machine during a run: MLflow's monitors, read in a thread and logged through the spool."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from siclip_platform.tracking.mlflow_patches import read_monitors, system_monitors
from siclip_platform.tracking.tracker import TrackedRun

SECONDS = 10.0


@contextmanager
def system_metrics(run: TrackedRun, every_seconds: float = SECONDS) -> Iterator[None]:
    """Log ``system/…`` of the driver's machine to ``run`` until the block ends."""
    done = threading.Event()
    monitors = system_monitors()

    def watch() -> None:
        step = 0
        while not done.wait(every_seconds):
            run.log(step, {f"system/{name}": value for name, value in read_monitors(monitors).items()})
            run.flush()
            step += 1

    thread = threading.Thread(target=watch, daemon=True, name="system-metrics")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=30)
