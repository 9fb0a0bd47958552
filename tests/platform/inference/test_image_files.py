"""Every image file of a folder is embedded or rejected with its reason."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from siclip.errors import UserError
from siclip_platform.inference.encoder import Encoder
from siclip_platform.inference.inputs import find_parts, read_rows
from tests.support.pictures import SIDE, deep, picture, saved

NAMES = {"JPEG": "a.JFIF", "PNG": "b.png", "PPM": "c.ppm", "JPEG2000": "d.jp2", "TIFF": "e.tif", "AVIF": "f.avif"}


def test_no_image_of_a_folder_is_passed_over(tmp_path: Path) -> None:
    for form, name in NAMES.items():
        (tmp_path / name).write_bytes(saved(picture(), form))
    grey = next(data for name, data, _ in deep(picture()) if name == "PGM of 16 bits")
    (tmp_path / "g.pgm").write_bytes(grey)
    rows = [row for part in find_parts(tmp_path, None, None, 3) for row in read_rows(part)]
    assert sorted(row.id for row in rows) == sorted([*NAMES.values(), "g.pgm"])
    encoder = SimpleNamespace(model=SimpleNamespace(config=SimpleNamespace(image=SimpleNamespace(image_size=SIDE))))
    for row in rows:
        if row.id.endswith("avif"):
            with pytest.raises(UserError, match=r"f\.avif.*none of JPEG, PNG"):
                Encoder.pixels(encoder, row.value, row.location)  # type: ignore[arg-type]
        else:
            assert Encoder.pixels(encoder, row.value, row.location).shape == (SIDE, SIDE, 3)  # type: ignore[arg-type]
