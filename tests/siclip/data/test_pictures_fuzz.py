"""Damaged images never end in anything but a refusal, and never take more memory than the limit of pixels allows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
MOST_MEBIBYTES = 2_000
"""An image of the largest size takes 4 + 4 + 4 + 3 + 3 bytes per pixel while it is laid over white: 1.5 GiB."""


@pytest.mark.parametrize(("seed", "count"), [(1, 3_000), pytest.param(2, 100_000, marks=pytest.mark.long, id="many")])
def test_damaged_images_are_read_or_refused(seed: int, count: int) -> None:
    script = ROOT / "tests/support/image_fuzz.py"
    ended = subprocess.run(
        [sys.executable, str(script), str(seed), str(count)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "platform")))},
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    found = json.loads(ended.stdout)
    assert found["read"] + found["refused"] == 4 * count
    assert min(found["read"], found["refused"]) > count / 2
    assert found["mebibytes"] < MOST_MEBIBYTES
