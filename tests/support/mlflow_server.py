"""A real MLflow server for tests, and a proxy before it that loses, delays and forges answers."""

from __future__ import annotations

import base64
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain
from pathlib import Path
from typing import Any


def free_port() -> int:
    """A port of the loopback interface that nothing uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def server(port: int, folder: Path) -> Iterator[str]:
    """Run a server on the loopback interface and kill it at the end. Yields its address.

    Args:
        port: a free port.
        folder: has ``mlflow.db``, or gets one, and the artifacts.
    """
    options = {
        "--host": "127.0.0.1",
        "--port": str(port),
        "--workers": "1",
        "--backend-store-uri": f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination": str(folder / "artifacts"),
    }
    command = [sys.executable, "-m", "mlflow", "server", *chain.from_iterable(options.items())]
    with (folder / "server.log").open("a") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        for _ in range(240):
            assert process.poll() is None, (folder / "server.log").read_text()
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
                break
            except OSError:
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


Fault = str | int | float | None
Faults = Callable[[str], Fault]
"""Path of a request → what happens to it: ``drop`` loses its answer, an int is a status that is answered in place of
the server, a float delays it by that many seconds, None passes it on.
"""


@contextmanager
def proxy(server_uri: str, faults: Faults, login: tuple[str, str] | None = None) -> Iterator[str]:
    """Pass requests on to a server, with faults. Yields the proxy's address.

    Args:
        server_uri: ``http://HOST:PORT`` of the server.
        faults: called for each request.
        login: user and password that a request must have.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except OSError:  # the client has gone
                self.close_connection = True

        def _handle(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if login and self.headers.get("Authorization") != _basic(*login):
                return self._answer(401, b"who are you?", "text/plain")
            fault = faults(self.path)
            if isinstance(fault, int):
                error = {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "forged by the proxy"}
                return self._answer(fault, json.dumps(error).encode(), "application/json")
            if isinstance(fault, float):
                time.sleep(fault)
            status, content, kind = self._ask(body)
            if fault == "drop":
                self.close_connection = True
                return None
            return self._answer(status, content, kind)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _handle

        def _ask(self, body: bytes) -> tuple[int, bytes, str]:
            connection = http.client.HTTPConnection(server_uri.removeprefix("http://"), timeout=60)
            kept = {name: value for name, value in self.headers.items() if name.lower() in ("content-type", "accept")}
            try:
                connection.request(self.command, self.path, body, kept)
                answer = connection.getresponse()
                return answer.status, answer.read(), answer.getheader("Content-Type", "application/json")
            finally:
                connection.close()

        def _answer(self, status: int, content: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: Any) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listening.daemon_threads = True
    thread = threading.Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.server_port}"
    finally:
        listening.shutdown()
        listening.server_close()
        thread.join()


def _basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
