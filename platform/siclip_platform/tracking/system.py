"""The machine's load beside a run: MLflow's own monitors, read in a thread and sent through the spool."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from siclip_platform.tracking.tracker import TrackedRun

SECONDS = 10.0


@contextmanager
def system_metrics(run: TrackedRun, every_seconds: float = SECONDS) -> Iterator[None]:
    """Log ``system/…`` of the driver's machine to ``run`` while the block runs."""
    done = threading.Event()
    monitors = _monitors()

    def watch() -> None:
        step = 0
        while not done.wait(every_seconds):
            run.log(step, {f"system/{name}": value for name, value in _read(monitors).items()})
            run.flush()
            step += 1

    thread = threading.Thread(target=watch, daemon=True, name="system-metrics")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=30)


def _monitors() -> list[Any]:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    monitors = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    try:
        monitors.append(GPUMonitor())
    except (ImportError, RuntimeError):  # no GPU, or no pynvml
        return monitors
    return monitors


def _read(monitors: list[Any]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for monitor in monitors:
        monitor.collect_metrics()
        figures.update(monitor.aggregate_metrics())
        monitor.clear_metrics()
    return figures
