"""Archives as they occur: what webdataset reads is imported, everything else is refused or in the ledger."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import webdataset
from import_parts import Outcome, add_member, imported, picture


def write(path: Path, members: list[tuple[str, bytes]]) -> None:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            add_member(tar, name, data)


def pair(key: str, number: int) -> list[tuple[str, bytes]]:
    return [(f"{key}.png", picture(number)), (f"{key}.txt", f"caption {number}".encode())]


def peers(path: Path) -> dict[str, bytes]:
    """Return key → caption of the pairs that webdataset reads."""
    samples = webdataset.WebDataset(str(path), shardshuffle=False)
    return {sample["__key__"]: sample["txt"] for sample in samples if "png" in sample and "txt" in sample}


def texts(found: Outcome) -> dict[str, bytes]:
    return {name: captions[0].encode() for name, captions in found.captions.items()}


DOUBLE = b"\0\5\26\7" + bytes(80)  # begins as macOS's AppleDouble files do


@pytest.mark.parametrize(
    "members",
    [
        [item for n in range(4) for name, data in pair(f"{n}", n) for item in ((f"._{name}", DOUBLE), (name, data))],
        [("README", b"text"), *pair("a", 0), ("LICENSE", b"text"), *pair("b", 1)],
        [("__meta__", b"{}"), ("__info__/a.json", b"{}"), *pair("a", 0), *pair("./b", 1), *pair("x.y/c", 2)],
        [*pair("a", 0)[:1], ("a.seg.png", picture(7)), ("a.npy", b"1"), *pair("a", 0)[1:], *pair("b", 1)],
        [("A.PNG", picture(0)), ("A.TXT", b"upper"), *pair("b", 1)],
    ],
    ids=["AppleDouble", "no extension", "metadata and folders", "further files", "upper case"],
)
def test_what_webdataset_reads_is_imported(members: list[tuple[str, bytes]], tmp_path: Path) -> None:
    write(tmp_path / "in/0.tar", members)
    found = imported(tmp_path / "in", tmp_path / "out")
    assert texts(found) == peers(tmp_path / "in/0.tar")
    assert found.captions
    assert not found.ledger


def test_names_with_further_dots_are_pairs(tmp_path: Path) -> None:
    """webdataset takes them for one sample of many files, so that nobody finds the pairs."""
    write(tmp_path / "in/0.tar", [*pair("img.1.5", 0), *pair("img.1.7", 1), *pair("other", 2)])
    found = imported(tmp_path / "in", tmp_path / "out")
    assert set(found.captions) == {"img.1.5", "img.1.7", "other"}
    assert not found.ledger


def test_members_grouped_by_kind_are_in_the_ledger_with_the_true_reason(tmp_path: Path) -> None:
    pairs = [pair(str(n), n) for n in range(5)]
    write(tmp_path / "in/0.tar", [*(p[0] for p in pairs), *(p[1] for p in pairs), *pair("good", 9)])
    found = imported(tmp_path / "in", tmp_path / "out")
    assert found.captions == {"good": ["caption 9"]} and peers(tmp_path / "in/0.tar").keys() == {"good"}
    assert found.reasons == {"scattered members": 10}
    assert "write it sorted by name" in found.ledger[0]["detail"]
    assert sum(row["sha256"] is not None for row in found.ledger) == 5


@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, lzma.compress], ids=["", "gz", "bz2", "xz"])
def test_an_archive_cut_anywhere_is_told(compress: Callable[[Any], bytes], tmp_path: Path) -> None:
    write(tmp_path / "whole/0.tar", [member for n in range(6) for member in pair(str(n), n)])
    whole = (tmp_path / "whole/0.tar").read_bytes()
    with tarfile.open(tmp_path / "whole/0.tar") as tar:
        starts = [member.offset for member in tar]
        end = tar.offset
    suffix = {bytes: "", gzip.compress: ".gz", bz2.compress: ".bz2", lzma.compress: ".xz"}[compress]
    for cut in (starts[4], starts[4] + 100, starts[4] + 512, starts[4] + 700, starts[5], starts[5] + 512, end):
        folder = tmp_path / str(cut)
        folder.mkdir()
        (folder / f"0.tar{suffix}").write_bytes(compress(whole[:cut]))
        found = imported(folder, tmp_path / f"out{cut}")
        assert found.reasons == {"damaged source": 1}, cut
        complete = sum(start + 512 < cut for start in starts[1::2] if start + 1024 <= cut)
        assert len(found.captions) == complete, cut


def test_an_archive_appended_to_another_is_told_and_joined_streams_are_read(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / f"one/{name}.tar", pair(name, ord(name)))
    a, b = ((tmp_path / f"one/{name}.tar").read_bytes() for name in "ab")
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat/0.tar").write_bytes(a + b)
    found = imported(tmp_path / "cat", tmp_path / "out-cat")
    assert found.captions.keys() == peers(tmp_path / "cat/0.tar").keys() == {"a"}
    assert "data follows its end mark" in found.ledger[0]["detail"]
    for suffix, compress in ((".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)):
        folder = tmp_path / f"joined{suffix}"
        folder.mkdir()
        (folder / f"0.tar{suffix}").write_bytes(compress(a[:700]) + compress(a[700:]))
        assert not imported(folder, tmp_path / f"out{suffix}").ledger


def test_a_member_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for key, kind in (
            ("a", tarfile.SYMTYPE),
            ("b", tarfile.LNKTYPE),
            ("c", tarfile.CHRTYPE),
            ("d", tarfile.FIFOTYPE),
        ):
            link = tarfile.TarInfo(f"{key}.png")
            link.type, link.linkname = kind, "/etc/passwd"
            tar.addfile(link)
            add_member(tar, f"{key}.txt", b"text")
        for name, data in pair("good", 1):
            add_member(tar, name, data)
    (tmp_path / "in/0.tar").write_bytes(buffer.getvalue())
    found = imported(tmp_path / "in", tmp_path / "out")
    assert list(found.captions) == ["good"]
    assert found.reasons == {"damaged row": 4}
