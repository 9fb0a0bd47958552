"""What `search` prints and shows: the picture that was embedded, and ids that cannot control a terminal."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from siclip.checkpoints.formats import save_checkpoint
from siclip.errors import UserError
from siclip.models import create_model
from siclip_platform.cli import app
from siclip_platform.inference.embed import embed
from siclip_platform.inference.inputs import find_parts, read_image_at, read_rows

HOSTILE = "red\x1b[2J\x9b1m\u202e\n1.0000  faked"
SHOWN = r"red\x1b[2J\x9b1m\u202e\n1.0000  faked"


def picture(colour: tuple[int, int, int]) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(out, "PNG")
    return out.getvalue()


def masked(path: Path) -> Path:
    """Parquet whose mask is before the image, as in sets for segmentation."""
    columns = {"mask": [picture((255, 255, 255))] * 2, "image": [picture((200, 0, 0)), picture((0, 0, 200))]}
    pq.write_table(pa.table({"id": [HOSTILE, "blue"], **columns}), path, row_group_size=1)
    return path


@pytest.mark.parametrize("kind", ["parquet", "folder"])
def test_a_location_is_read_from_any_working_folder(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "source").mkdir()
    if kind == "parquet":
        masked(tmp_path / "source" / "a #1:2.parquet")
    else:
        (tmp_path / "source" / "a.png").write_bytes(picture((200, 0, 0)))
        (tmp_path / "source" / "b.png").write_bytes(picture((0, 0, 200)))
    monkeypatch.chdir(tmp_path)
    rows = [row for part in find_parts(Path("source"), "image", None, 10) for row in read_rows(part)]
    monkeypatch.chdir("/")
    assert [read_image_at(row.location) for row in rows] == [picture((200, 0, 0)), picture((0, 0, 200))]


def test_an_index_of_an_earlier_version_is_not_guessed_at(tmp_path: Path) -> None:
    file = masked(tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"may be in any of mask, image: embed the images again"):
        read_image_at(f"{file}#0:0")
    pq.write_table(pq.read_table(file, columns=["id", "image"]), file)
    assert read_image_at(f"{file}#0:1") == picture((0, 0, 200))
    with pytest.raises(UserError, match="cannot be read any more"):
        read_image_at(f"{file}#0:7:image")
    with pytest.raises(UserError, match="cannot be read any more"):
        read_image_at(f"{file}#0:0:photo")


def test_lines_of_texts_are_counted_as_an_editor_does(tmp_path: Path) -> None:
    file = tmp_path / "texts.txt"
    file.write_bytes("\ufeffone\u2028still one\r\n\ntwo\x0cstill two\n".encode())
    rows = list(read_rows(find_parts(file, None, None, 10)[0]))
    assert [(row.id, row.value) for row in rows] == [
        ("1", "one\u2028still one"),
        ("2", ""),
        ("3", "two\x0cstill two"),
    ]
    file.write_bytes(b"caf\xe9\n")
    with pytest.raises(UserError, match="is not UTF-8"):
        list(read_rows(find_parts(file, None, None, 10)[0]))


@pytest.mark.slow
def test_the_sheet_shows_what_was_embedded_and_the_screen_escapes_ids(
    own_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "model.pt", create_model("siclip-nano"))
    masked(tmp_path / "masked.parquet")
    monkeypatch.chdir(tmp_path)
    embed("model.pt", Path("masked.parquet"), Path("index"), kind="image")
    (tmp_path / "red.png").write_bytes(picture((200, 0, 0)))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = CliRunner().invoke(app, ["search", "../index", "../red.png", "--sheet", "sheet.html"])
    assert found.exit_code == 0, found.output
    assert found.output.splitlines()[0] == f"1.0000  {SHOWN}"
    query, first, second = re.findall(r"data:image/jpeg;base64,([^\"]+)", Path("sheet.html").read_text())
    assert query == first
    shown = [np.asarray(Image.open(io.BytesIO(base64.b64decode(each)))).mean((0, 1)) for each in (first, second)]
    np.testing.assert_allclose(shown, [(200, 0, 0), (0, 0, 200)], atol=3)
