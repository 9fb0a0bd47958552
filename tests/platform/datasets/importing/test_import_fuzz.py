"""A seeded loop over damaged tables and archives: never a traceback or a hang, read = written + merged + ledger."""

from __future__ import annotations

import gzip
import io
import json
import random
import resource
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from import_parts import add_member, imported, picture

from siclip.errors import UserError

SECONDS = 5  # for each kind
IMAGES = [picture(number) for number in range(6)]
ODD: list[Any] = [None, "", "plain", 'a "b" c', '"open', "x,y", "l1\nl2", "\0", "\u2028", "NaN", "['a']", "é", "=1+1"]
VALUES: list[Any] = [*ODD, 1, 1.5, float("nan"), True, ["a", None], [["a"]], {"en": "x"}, {"text": "t"}, 10**30]


def csv_bytes(rng: random.Random) -> bytes:
    separator = rng.choice([",", "\t", ";"])
    lines = [separator.join(("path", "caption", "split"))]
    for _ in range(rng.randint(1, 12)):
        path = rng.choice(["0.png", "1.png", "gone.png", "/etc/passwd", "../x.png", '"2.png"', ""])
        caption = str(rng.choice(ODD))
        quoted = '"' + caption.replace('"', '""') + '"'
        fields = [path, rng.choice([caption, quoted]), rng.choice(["", "train", "test", "5%"])]
        lines.append(separator.join(fields[: rng.choice([3, 3, 3, 2])]))
    return rng.choice(["\n", "\r\n"]).join([*lines, ""]).encode(rng.choice(["utf-8", "utf-8-sig", "utf-8"]))


def json_bytes(rng: random.Random) -> bytes:
    rows = [{"path": "0.png", "caption": "first"}]
    rows += [
        {
            "path": rng.choice(["0.png", "1.png", 3, None, ["0.png"]]),
            "caption": rng.choice(VALUES),
            "id": rng.choice(VALUES),
        }
        for _ in range(rng.randint(1, 12))
    ]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet_bytes(rng: random.Random) -> bytes:
    count = rng.randint(1, 12)
    kinds: list[list[Any]] = [
        ["a", None, ""],
        [["a"], None, []],
        [1.5, float("nan"), None],
        [b"a", b"\xff", None],
        [True],
    ]
    kind = rng.choice(kinds)
    images = [rng.choice([*IMAGES, b"", b"no image", None, IMAGES[0][:200]]) for _ in range(count)]
    table = pa.table({"image": pa.array(images, pa.binary()), "caption": [rng.choice(kind) for _ in range(count)]})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=rng.randint(1, 5))
    return buffer.getvalue()


def tar_bytes(rng: random.Random) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=rng.choice([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])) as tar:
        for number in range(rng.randint(1, 6)):
            key = rng.choice([f"{number}", f"a/{number}", f"._{number}", f"x.{number}", "é" * 120, "", "same"])
            for kind in rng.sample(["png", "txt", "json", "cls", "PNG", "npy", "seg.png"], rng.randint(1, 4)):
                text = json.dumps({"caption": rng.choice(VALUES)}) if kind == "json" else str(rng.choice(ODD))
                image = kind.lower().endswith("png")
                add_member(tar, f"{key}.{kind}", rng.choice(IMAGES) if image else text.encode())
    data = buffer.getvalue()
    return gzip.compress(data) if rng.random() < 0.3 else data


def damaged(data: bytes, rng: random.Random) -> bytes:
    kind = rng.random()
    if kind < 0.4:
        return data
    if kind < 0.7:
        return data[: rng.randint(0, len(data))]
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        if changed:
            changed[rng.randrange(len(changed))] = rng.choice([0, 255, 34, 10, rng.randrange(256)])
    return bytes(changed)


KINDS: dict[str, Callable[[random.Random], bytes]] = {
    "list.csv": csv_bytes,
    "list.jsonl": json_bytes,
    "a.parquet": parquet_bytes,
    "a.tar": tar_bytes,
}


@pytest.mark.parametrize("seconds", [SECONDS, pytest.param(30 * SECONDS, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", KINDS)
def test_damaged_sources_lose_no_row_and_end_in_a_sentence(name: str, seconds: int, tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rng = random.Random(name)
    end = time.monotonic() + seconds
    tries = good = 0
    while time.monotonic() < end:
        tries += 1
        folder = tmp_path / str(tries)
        folder.mkdir()
        for number, image in enumerate(IMAGES[:3]):
            if name.startswith("list"):
                (folder / f"{number}.png").write_bytes(image)
        data = damaged(KINDS[name](rng), rng)
        (folder / name).write_bytes(data)
        started = time.monotonic()
        try:
            found = imported(folder, tmp_path / f"out{tries}", rows=rng.choice([1, 3, 100]))
        except UserError as error:
            assert str(error)
        else:
            good += 1
            done = found.imported
            assert done.read == sum(map(len, found.rows.values())) + done.merged + len(found.ledger), data
        assert time.monotonic() - started < 60, data
    assert good
    # KiB: far below what a claimed size would take, above what the images of the tries leave behind.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000
