"""Everything that uses private members or process-wide settings of MLflow, each until MLflow has a public way.

All were seen in MLflow 3.17. ``tests/platform/tracking/test_mlflow_patches.py`` fails when one is no longer needed.
Importing this module does not import MLflow.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

HTTP_LIMITS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
"""A client that does not answer for minutes would block a flush; the sender retries by itself.

By default MLflow waits for 120 s and retries 7 times. It reads both when it sends a request. Waits for arguments of
``MlflowClient``.
"""


def limit_http_requests() -> None:
    """Set `HTTP_LIMITS` for this process; a variable that is already set keeps its value."""
    for name, value in HTTP_LIMITS.items():
        os.environ.setdefault(name, value)


@contextmanager
def http_limits(repeats: int, seconds: int | None = None) -> Iterator[None]:
    """Other limits for the requests within the block, in all threads.

    MLflow's client repeats a request whose answer was lost, so a run would be created twice: with ``repeats=0`` it
    does not. Waits for arguments of ``MlflowClient``.

    Args:
        repeats: of one request.
        seconds: for one request; None leaves the present limit.
    """
    limits = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(repeats)}
    if seconds is not None:
        limits["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(seconds)
    before = {name: os.environ.get(name) for name in limits}
    os.environ.update(limits)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def log_in(user: str, password: str) -> None:
    """Log this process in to MLflow servers. In MLflow's own URI the password would be part of its messages."""
    os.environ.update({"MLFLOW_TRACKING_USERNAME": user, "MLFLOW_TRACKING_PASSWORD": password})


def quieten() -> None:
    """Hide the lines that MLflow logs and prints, and its bars. Call it after MLflow was imported.

    Importing MLflow sets the level of its loggers. Waits for a store that logs at debug level, and for bars that are
    only drawn on a terminal.
    """
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # "View run … at" when one has ended


def system_monitors() -> list[Any]:
    """MLflow's monitors of CPU, disk, network and, where there is one, GPU; see `read_monitors`.

    The public ``mlflow.system_metrics`` only logs to the active run of the fluent API, past our spool. Waits for
    public monitors.
    """
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


def read_monitors(monitors: list[Any]) -> dict[str, float]:
    """One sample of each monitor: name → value."""
    values: dict[str, float] = {}
    for monitor in monitors:
        monitor.collect_metrics()
        values.update(monitor.aggregate_metrics())
        monitor.clear_metrics()
    return values
