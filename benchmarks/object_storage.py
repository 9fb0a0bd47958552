"""The training stream read from S3 with 50 ms of latency per request, compared with the same stream from local files.

    python benchmarks/object_storage.py [--images 30000] [--repeats 3] [--batch 256] [--latency-ms 50]

The images, batches and workers are those of `streaming.py`. A server on this machine answers the requests of an S3
client that reads, and waits before each answer. Both readers read both places; the four alternate, each in a separate
process, and a ratio compares runs of the same round. The server takes part of the machine's cores, which the local
runs have to themselves.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import streaming
from streaming_readers import WORKERS, build

RESULT = Path(__file__).resolve().parent / "results" / "object_storage.json"
BUCKET = "data"
CASES = ("threads, local", "threads, S3", "Ray Data, local", "Ray Data, S3")


class S3(BaseHTTPRequestHandler):
    """The part of S3 that a reader uses: HEAD, GET of a byte range, and the list of a folder."""

    protocol_version = "HTTP/1.1"
    root: Path
    seconds: float

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        time.sleep(self.seconds)
        address = urlsplit(self.path)
        query = parse_qs(address.query)
        file = self.root / unquote(address.path).removeprefix(f"/{BUCKET}").lstrip("/")
        if "list-type" in query:
            self._send(200, self._listing(query["prefix"][0] if "prefix" in query else "").encode(), {})
        elif file.is_file():
            self._file(file, body)
        else:
            self._send(404, b"", {})

    def _file(self, file: Path, body: bool) -> None:
        size = file.stat().st_size
        headers = {"Last-Modified": formatdate(file.stat().st_mtime, usegmt=True), "ETag": f'"{size}"'}
        if not body:
            self._send(200, None, headers | {"Content-Length": str(size)})
            return
        asked = self.headers.get("Range")
        first, last = 0, size - 1
        if asked:
            begin, _, end = asked.removeprefix("bytes=").partition("-")
            first, last = int(begin), min(int(end or last), last)
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        with file.open("rb") as content:
            content.seek(first)
            self._send(206 if asked else 200, content.read(last + 1 - first), headers)

    def _listing(self, prefix: str) -> str:
        found = [path for path in sorted((self.root / prefix).glob("*")) if path.is_file()]
        rows = [
            f"<Contents><Key>{escape(path.relative_to(self.root).as_posix())}</Key><Size>{path.stat().st_size}</Size>"
            f"<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            for path in found
        ]
        return f"<ListBucketResult><IsTruncated>false</IsTruncated>{''.join(rows)}</ListBucketResult>"

    def _send(self, status: int, content: bytes | None, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if content is not None:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if content is not None:
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged."""


def serve(root: Path, seconds: float, port: Any) -> None:
    S3.root, S3.seconds = root, seconds
    server = ThreadingHTTPServer(("127.0.0.1", 0), S3)
    port.send(server.server_address[1])
    server.serve_forever()


def read(case: str, root: Path, batch: int) -> dict[str, float]:
    """One pass over the images, measured as in `streaming.py`."""
    from siclip.models import model_config
    from siclip_platform.cluster.connect import Needs, ray_cluster
    from siclip_platform.recipes.digits import digits_teacher
    from siclip_platform.storage import as_path
    from siclip_platform.stream import Stream, thread_batches
    from siclip_platform.stream.ray_reader import ray_batches

    reader, _, place = case.partition(", ")
    data = as_path(f"s3://{BUCKET}/parquet" if place == "S3" else str(root / "parquet"))
    changes = {"data.window_row_groups": 8, "data.concurrent_reads": WORKERS}

    def one_pass() -> dict[str, float]:
        stream = Stream.of(digits_teacher(data).updated(changes), model_config("mobileclip-s0"))
        stop = stream.rows // batch * batch
        started = time.perf_counter()
        first, count = 0.0, 0
        for got in (thread_batches if reader == "threads" else ray_batches)(stream, batch, 0, stop):
            first = first or time.perf_counter() - started
            count += len(got)
        seconds = time.perf_counter() - started
        return {
            "images_per_second": count / seconds,
            "first_batch_seconds": first,
            "steady_images_per_second": (count - batch) / (seconds - first),
        }

    if reader == "threads":
        return one_pass()
    with ray_cluster(Needs(concurrent=1, worker_cpus=1.0)):
        return one_pass()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=30_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--latency-ms", type=float, default=50.0)
    parser.add_argument("--data", type=Path, help="folder of the images, as in streaming.py")
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--child", choices=CASES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(read(options.child, options.data, options.batch)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        root = options.data or Path(temporary)
        build(root, options.images)
        ours, theirs = multiprocessing.Pipe()
        server = multiprocessing.get_context("spawn").Process(
            target=serve, args=(root, options.latency_ms / 1000, theirs), daemon=True
        )
        server.start()
        os.environ |= {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ours.recv()}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        rounds: dict[str, list[dict[str, float]]] = {case: [] for case in CASES}
        for repeat in range(options.repeats):
            for case in CASES[repeat % len(CASES) :] + CASES[: repeat % len(CASES)]:
                command = [sys.executable, __file__, "--child", case, "--data", str(root)]
                rounds[case].append(streaming.child_figures([*command, "--batch", str(options.batch)]))
                print(case, rounds[case][-1], flush=True)
        server.terminate()
    figures: dict[str, Any] = {
        case: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for case, runs in rounds.items()
    }
    for reader in ("threads", "Ray Data"):
        for key in ("images_per_second", "steady_images_per_second"):
            pairs = zip(rounds[f"{reader}, S3"], rounds[f"{reader}, local"], strict=True)
            ratios = sorted(remote[key] / local[key] for remote, local in pairs)
            figures[f"{reader}, S3"][f"ratio_{key}"] = {"median": statistics.median(ratios), "all": ratios}
    for case, own in figures.items():
        ratio = own.get("ratio_images_per_second")
        shown = f"{ratio['median']:.2f} of local ({ratio['all'][0]:.2f}-{ratio['all'][-1]:.2f})" if ratio else ""
        print(f"{case:18}{own['images_per_second']:8.0f} images/s, first {own['first_batch_seconds']:.2f} s  {shown}")
    record = streaming.record_of(options, ("images", "repeats", "batch", "latency_ms"), figures, rounds)
    options.result.write_text(json.dumps(record, indent=2) + "\n")
    print(f"written to {options.result}")


if __name__ == "__main__":
    main()
