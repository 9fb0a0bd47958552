"""Servers that accept a connection and stay silent, or are not there: every wait for one ends within 15 s."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from siclip.errors import UserError
from siclip_platform.cluster.connect import check_address

LIMIT = 15
STARTING = 45
"""Seconds that a loaded machine may need to import what the command uses; the wait is measured by the message."""


@pytest.fixture
def silent() -> Iterator[str]:
    """HOST:PORT of a server that accepts connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(64)
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("address", [pytest.param("{}", marks=pytest.mark.long), "ray://{}", "http://{}"])
def test_a_cluster_that_is_silent_is_refused(address: str, silent: str) -> None:
    started = time.monotonic()
    with pytest.raises(UserError, match=r"no Ray cluster at .*Start one"):
        check_address(address.format(silent))
    assert time.monotonic() - started < LIMIT


STORES = {
    "http": "http://{}/data",
    "s3": "s3://bucket/data",
    "gs": "gs://anonymous@bucket/data?scheme=http&endpoint_override={}",
}


@pytest.mark.slow
@pytest.mark.parametrize("scheme", [pytest.param("http", marks=pytest.mark.long), "s3", "gs"])
def test_a_store_that_is_silent_is_refused_and_the_process_ends(scheme: str, silent: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "siclip_platform", "data", "verify", STORES[scheme].format(silent)]
    variables = {
        "AWS_ENDPOINT_URL": f"http://{silent}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    started = time.monotonic()
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | variables, capture_output=True, text=True, timeout=200, check=False
    )
    error = re.sub(r"\s+", " ", done.stderr)
    assert done.returncode == 2 and "no server answers" in error and "(nothing within 12 s)" in error, error
    assert "Traceback" not in error and "Fatal" not in error
    assert time.monotonic() - started < LIMIT + STARTING
