"""Start or join Ray, check that the work fits, and limit what Ray prints."""

from __future__ import annotations

import gc
import http.client
import logging
import os
import socket
import sys
import traceback
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siclip.errors import UserError
from siclip_platform.cluster.interrupt import handle_interrupts, handles_interrupts
from siclip_platform.cluster.ray_patches import (
    hide_worker_count_warning,
    keep_sigterm_handler,
    silence_through_environment,
)

COORDINATOR_CPUS = 0.01
DATA_CPUS = 0.5
OBJECT_STORE_SHARE = 0.3  # of the memory; Ray's own default
OBJECT_STORE_BYTES = (2 if sys.platform == "darwin" else 4) * 2**30
"""The most that a Ray which we start gives its object store: the blocks of ten readers. On macOS Ray allows 2 GiB."""
CONNECT_SECONDS, GREETING_SECONDS = 5, 10
CLIENT_PORT = "10001"  # of ray://HOST


@dataclass(frozen=True)
class Needs:
    """Peak use of CPUs: ``concurrent`` trainings of ``workers`` workers each, and the tasks that read their data."""

    concurrent: int
    worker_cpus: float
    workers: int = 1

    @property
    def cpus(self) -> float:
        """The sum of the parts, and one CPU for Ray Data's own metadata tasks."""
        return self.concurrent * (COORDINATOR_CPUS + self.workers * (self.worker_cpus + DATA_CPUS)) + 1


def names_cluster(address: str | None) -> bool:
    """Whether a cluster is named, by its address or by RAY_ADDRESS."""
    return bool(address or os.environ.get("RAY_ADDRESS"))


@contextmanager
def ray_cluster(needs: Needs, address: str | None = None, verbose: bool = False) -> Iterator[None]:
    """Join the cluster at ``address`` or at RAY_ADDRESS (set inside a Ray job), else start one on this machine.

    Raises:
        UserError: no cluster answers at the address, or it is too small; the message gives the numbers.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    prepare_environment(verbose)
    import ray

    quieten(verbose)
    if handles_interrupts():
        keep_sigterm_handler()
    options = {"log_to_driver": verbose, "logging_level": logging.INFO if verbose else logging.ERROR}
    if address:
        _join(address, options)
    else:
        # Logical CPUs may exceed the cores: Ray schedules by them and reserves nothing.
        cpus = max(4, os.cpu_count() or 1, int(needs.cpus + 1))
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        ray.init(address="local", num_cpus=cpus, object_store_memory=object_store_bytes(memory), **options)
        _restrict_token()
    if handles_interrupts():
        # Ray's C++ part has put a handler of SIGTERM in front that prints its stack and aborts.
        handle_interrupts()
    try:
        check_size(needs, address)
        ray.data.DataContext.get_current().enable_progress_bars = verbose
        yield
    except BaseException as error:
        # An iterator of Ray Data that outlives Ray prints a traceback when it is deleted: those in frames end here.
        traceback.clear_frames(error.__traceback__)
        gc.collect()
        raise
    finally:
        ray.shutdown()


def object_store_bytes(memory: int) -> int:
    """Return the size of the object store of a Ray that we start on a machine with so much memory, both in bytes."""
    return min(int(memory * OBJECT_STORE_SHARE), OBJECT_STORE_BYTES)


def _restrict_token() -> None:
    """Make the token that Ray generates for its first cluster readable by its owner only: Ray leaves it to all."""
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
    """Check that a cluster answers at HOST:PORT or ray://HOST[:PORT], or a dashboard at http(s)://HOST:PORT.

    An address of another form is not checked.

    Raises:
        UserError: nothing listens there, or what listens does not answer. Ray itself would retry for minutes.
    """
    scheme, _, server = address.rpartition("://")
    host, colon, port = server.partition("/")[0].rpartition(":")
    if not colon and scheme == "ray":
        host, port = server, CLIENT_PORT
    if not (host and port.isdigit()):
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
        if scheme in ("http", "https"):
            _ask_dashboard(address)
        else:
            _greet(f"{host}:{port}")
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise _no_cluster(address, error) from None


def _ask_dashboard(address: str) -> None:
    with suppress(urllib.error.HTTPError):  # an answer: it may want the token
        urllib.request.urlopen(address, timeout=CONNECT_SECONDS).close()


def _greet(server: str) -> None:
    """Wait for the greeting of a gRPC server, which every part of Ray is."""
    if os.environ.get("RAY_USE_TLS", "0") != "0":
        return  # its greeting needs Ray's certificates
    import grpc  # of ray[default]

    with grpc.insecure_channel(server, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=GREETING_SECONDS)
        except grpc.FutureTimeoutError:
            raise TimeoutError(f"what listens there does not answer as Ray within {GREETING_SECONDS} s") from None


def _no_cluster(address: str, error: Exception) -> UserError:
    return UserError(
        f"no Ray cluster at {address!r}: {str(error).splitlines()[0]}. Start one (make head), or unset RAY_ADDRESS "
        "and omit --address to run on this machine alone. A cluster with token authentication "
        "needs its token in RAY_AUTH_TOKEN or ~/.ray/auth_token"
    )


def check_size(needs: Needs, address: str | None) -> None:
    """Compare the CPUs of the connected cluster with what the work needs.

    Raises:
        UserError: the cluster has too few; the message gives both numbers.
    """
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
    """Set the documented variables that Ray reads on import or start; one that is already set keeps its value."""
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Under `uv run` Ray would build an environment of its own for the workers.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    # A thread that still calls Ray after it was shut down would start another cluster.
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    # A trial that is stopped needs time to release its memory before the next one uses the same process.
    os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", "60")
    # Spinning OpenMP threads would take the cores of the other trials.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if not verbose:
        os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
        silence_through_environment()


def quieten(verbose: bool) -> None:
    """Show only the errors of Ray, which must be imported; with ``verbose`` all its messages."""
    if verbose:
        return

    warnings.filterwarnings("ignore", module=r"ray\..*")
    for name in ("ray", "ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)
        for handler in logging.getLogger(name).handlers:
            handler.setLevel(logging.ERROR)
    hide_worker_count_warning()
