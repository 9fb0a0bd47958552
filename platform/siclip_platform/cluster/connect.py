"""Start or join Ray, check that the work fits, keep it quiet."""

from __future__ import annotations

import logging
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siclip.errors import UserError
from siclip_platform.cluster.ray_patches import hide_worker_count_warning

COORDINATOR_CPUS = 0.01
DATA_CPUS = 0.5


@dataclass(frozen=True)
class Needs:
    """What the widest moment of the work takes: ``concurrent`` trainings of ``workers`` workers, and their data."""

    concurrent: int
    worker_cpus: float
    workers: int = 1

    @property
    def cpus(self) -> float:
        """One CPU more than the parts, for Ray Data's own metadata tasks."""
        return self.concurrent * (COORDINATOR_CPUS + self.workers * (self.worker_cpus + DATA_CPUS)) + 1


@contextmanager
def ray_cluster(needs: Needs, address: str | None = None, verbose: bool = False) -> Iterator[None]:
    """Join the cluster at ``address`` or at RAY_ADDRESS (set inside a Ray job), else run one of our own here.

    Raises:
        UserError: no cluster answers at the address, or it is too small; the message gives the numbers.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    prepare_environment(verbose)
    import ray

    _quieten(verbose)
    options = {"log_to_driver": verbose, "logging_level": logging.INFO if verbose else logging.ERROR}
    if address:
        _join(address, options)
    else:
        ray.init(address="local", num_cpus=max(4, os.cpu_count() or 1, int(needs.cpus + 1)), **options)
        _guard_token()
    try:
        check_size(needs, address)
        ray.data.DataContext.get_current().enable_progress_bars = verbose
        yield
    finally:
        ray.shutdown()


def _guard_token() -> None:
    """The token that Ray makes for a first cluster is readable by everyone: keep it to its owner."""
    token = Path.home() / ".ray" / "auth_token"
    if token.is_file() and token.stat().st_uid == os.getuid():
        token.chmod(0o600)


def _join(address: str, options: dict[str, Any]) -> None:
    import ray

    check_address(address)
    try:
        ray.init(address=address, **options)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise _no_cluster(address, error) from None


def check_address(address: str) -> None:
    """Make sure that something listens at HOST:PORT; an address without a port is taken as it is.

    Raises:
        UserError: nothing does; Ray itself would try for minutes.
    """
    host, colon, port = address.rpartition("//")[2].rpartition(":")
    if colon and port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except (OSError, ValueError) as error:
            raise _no_cluster(address, error) from None


def _no_cluster(address: str, error: Exception) -> UserError:
    return UserError(
        f"no Ray cluster at {address!r}: {str(error).splitlines()[0]}. Start one (make head), or unset RAY_ADDRESS "
        "and leave --address out to run on this machine alone. A cluster with token authentication "
        "needs its token in RAY_AUTH_TOKEN or ~/.ray/auth_token"
    )


def check_size(needs: Needs, address: str | None) -> None:
    import ray

    cpus = ray.cluster_resources().get("CPU", 0)
    if cpus < needs.cpus:
        raise UserError(
            f"the cluster at {address} has {cpus:g} CPUs and this needs {needs.cpus:g}: {needs.concurrent} × "
            f"({COORDINATOR_CPUS} coordinator + {f'{needs.workers} × (' if needs.workers > 1 else ''}"
            f"{needs.worker_cpus:g} worker + {DATA_CPUS} data{')' if needs.workers > 1 else ''}) + 1. "
            "Start Ray with a higher --num-cpus (logical CPUs may exceed the cores)"
        )


def prepare_environment(verbose: bool) -> None:
    """Variables that Ray reads when it is imported or started; what is set already stays."""
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_DATA_USE_DATASOURCE_V2", "0")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", "60")  # to give its memory back
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if not verbose:
        os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
        os.environ.setdefault("RAY_DATA_LOG_LEVEL", "ERROR")
        os.environ.setdefault("RAY_SCHEDULER_EVENTS", "0")


def _quieten(verbose: bool) -> None:
    if verbose:
        return

    warnings.filterwarnings("ignore", module=r"ray\..*")
    for name in ("ray", "ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)
        for handler in logging.getLogger(name).handlers:
            handler.setLevel(logging.ERROR)
    hide_worker_count_warning()
