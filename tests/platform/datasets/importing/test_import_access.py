"""Rows name files of the source's folder only; what is refused leaves no trace but its name."""

from __future__ import annotations

import hashlib
import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from import_parts import imported, picture

from siclip.errors import UserError
from siclip_platform.datasets.importing.sources.access import Access

SECRET = b"root:x:0:0:a secret that nobody may see"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A source folder ``in`` with a good image, and files of the user beside it."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in/good.png").write_bytes(picture(0))
    (tmp_path / "private.png").write_bytes(picture(1))
    (tmp_path / "token").write_bytes(SECRET)
    (tmp_path / "in/link.png").symlink_to(tmp_path / "private.png")
    (tmp_path / "in/token.png").symlink_to(tmp_path / "token")
    (tmp_path / "in/token-inside").write_bytes(SECRET)
    os.mkfifo(tmp_path / "in/fifo.png")
    return tmp_path


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_files_outside_the_source_are_refused_and_nothing_of_them_is_stored(form: str, place: Path) -> None:
    outside = [str(place / "private.png"), "../private.png", (place / "private.png").as_uri(), "link.png"]
    outside += [
        "../token",
        "token.png",
        "/etc/passwd",
        "/proc/self/environ",
        "/dev/zero",
        "/dev/stdin",
        "file:///etc/passwd",
    ]
    outside += [
        "fifo.png",
        "s3://bucket/key.png",
        "http://127.0.0.1:1/x.png",
        "memory://m/x.png",
        "a::memory://m/x.png",
    ]
    names = ["good.png", *outside, "token-inside", "gone.png"]
    rows = {"path": names, "caption": [f"number {n}" for n in range(len(names))]}
    if form == "csv":
        lines = ["path,caption", *map(",".join, zip(*rows.values(), strict=True))]
        (place / "in/list.csv").write_text("\n".join(lines) + "\n")
    else:
        pq.write_table(pa.table(rows), place / "in/list.parquet")
    found = imported(place / "in", place / "out")
    assert list(found.captions.values()) == [["number 0"]]
    assert len(found.ledger) == len(names) - 1
    reasons = {int(row["place"]): row["reason"] for row in found.ledger}
    assert [reasons[n] for n in range(1, len(outside) + 1)] == ["refused path"] * len(outside)
    assert [reasons[n] for n in range(len(outside) + 1, len(names))] == ["not an image", "missing image"]
    assert all(row["sha256"] is None and row["bytes"] is None for row in found.ledger)
    stored = b"".join(path.read_bytes() for path in (place / "out").rglob("*") if path.is_file())
    for data in (SECRET, picture(1)):
        assert data[:12] not in str(found.ledger).encode()
        assert hashlib.sha256(data).hexdigest().encode() not in stored


def test_a_folder_outside_is_read_if_the_user_allows_it(place: Path) -> None:
    (place / "in/list.csv").write_text("path,caption\ngood.png,good\n../private.png,private\n/proc/self/environ,no\n")
    access = Access.allowing([str(place), "/proc"], [])
    found = imported(place / "in", place / "out", access=access)
    assert sorted(found.captions.values()) == [["good"], ["private"]]
    assert found.reasons == {"refused path": 1}
    with pytest.raises(UserError, match="--allow-outside nowhere is not a folder"):
        Access.allowing(["nowhere"], [])


def test_links_of_the_source_itself_are_resolved(place: Path) -> None:
    for name in ("good", "link", "token"):
        (place / f"in/{name}.txt").write_text(name)
    found = imported(place / "in", place / "out")
    assert list(found.captions) == ["good"]
    assert {row["id"]: row["reason"] for row in found.ledger} == dict.fromkeys(("link", "token"), "refused path")
    (place / "tars").mkdir()
    (place / "tars/0.tar").symlink_to(place / "token")
    with pytest.raises(UserError, match=r"0\.tar is a link to .*token.*--allow-outside"):
        imported(place / "tars", place / "out2")


class _Server(http.server.BaseHTTPRequestHandler):
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        moved = self.path == "/moved.png"
        self.send_response(302 if moved else 200)
        self.send_header("Location", f"http://localhost:{self.server.server_address[1]}/x.png")
        self.end_headers()
        if not moved:
            self.wfile.write(picture(5))

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[int]:
    _Server.asked.clear()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Server)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()
    thread.join()


def test_addresses_are_read_from_allowed_hosts_only_and_never_redirected(
    place: Path, server: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    base = f"http://127.0.0.1:{server}"
    names = ["good.png", f"{base}/a.png?signature=hunter2", f"{base}/moved.png", f"http://localhost:{server}/b.png"]
    lines = [f"{name},number {n}" for n, name in enumerate(names)]
    (place / "in/list.csv").write_text("\n".join(["path,caption", *lines]) + "\n")
    imported(place / "in", place / "none")
    assert not _Server.asked
    found = imported(place / "in", place / "out", access=Access.allowing([], ["127.0.0.1"]))
    assert sorted(found.captions.values()) == [["number 0"], ["number 1"]]
    assert [row["reason"] for row in found.ledger] == ["missing image", "refused path"]
    assert _Server.asked == ["/a.png?signature=hunter2", "/moved.png"]
    assert "hunter2" not in str(found.ledger)
