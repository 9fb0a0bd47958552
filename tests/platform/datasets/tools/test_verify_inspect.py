"""The commands ``data verify`` and ``data inspect``."""

from __future__ import annotations

import base64
import io
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pytest
from pair_shards import DAMAGE, write_pairs
from PIL import Image
from typer.testing import CliRunner

from siclip_platform.cli import app
from siclip_platform.datasets.derived.stage import Pool
from siclip_platform.datasets.importing.ingest import import_dataset
from siclip_platform.datasets.importing.parts import ImportConfig
from siclip_platform.datasets.importing.sources.columns import ColumnNames
from siclip_platform.datasets.importing.sources.find import find_source
from siclip_platform.datasets.manifest import Manifest, open_dataset, write_manifest, write_shard
from siclip_platform.datasets.schema import SCHEMA
from siclip_platform.datasets.tools.inspect import sample_rows, summarize_split


def invoke(*arguments: str) -> tuple[int, str]:
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["data", *arguments])
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verify")
    write_pairs(folder / "pairs", 100, 20, 0.1)
    source = find_source(str(folder / "pairs"), None, ColumnNames(), 20)
    import_dataset(source, folder / "out", ImportConfig(), max_bad_share=1, pool=Pool(here=True))
    return folder / "out"


def test_an_undamaged_dataset_is_verified(imported: Path) -> None:
    code, output = invoke("verify", str(imported))
    assert code == 0
    assert f"90 rows match the manifest {open_dataset(imported).hash}" in output


@pytest.mark.parametrize("name", ["train-00002-000.parquet", "ledger.parquet"])
def test_a_flipped_bit_reports_only_the_damaged_file(imported: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(imported, tmp_path / "d")
    data = bytearray((tmp_path / "d" / name).read_bytes())
    data[len(data) // 3] ^= 1
    (tmp_path / "d" / name).write_bytes(data)
    code, output = invoke("verify", str(tmp_path / "d"))
    assert code == 1
    assert re.findall(r"damaged: .*/(\S+?\.parquet)", output) == [name]


def test_every_damaged_shard_is_reported(imported: Path, tmp_path: Path) -> None:
    shutil.copytree(imported, tmp_path / "d")
    (tmp_path / "d/train-00000-000.parquet").unlink()
    with (tmp_path / "d/train-00003-000.parquet").open("ab") as file:
        file.write(b"more")
    code, output = invoke("verify", str(tmp_path / "d"))
    assert code == 1
    assert "train-00000-000.parquet is missing" in output
    assert "train-00003-000.parquet has" in output
    assert output.count("damaged:") == 2


def test_inspect_shows_the_ledger_and_the_shards(imported: Path, tmp_path: Path) -> None:
    code, output = invoke("inspect", str(imported), "--sheet", str(tmp_path / "sheet.html"), "--images", "7")
    assert code == 0
    assert "train: 90 rows in 5 shards" in output
    assert "rejected: 10 rows" in output
    for reason in DAMAGE:
        assert f"  {reason}: 1" in output
    assert "90 captions: original 90" in output
    assert (tmp_path / "sheet.html").read_text().count("<img") == 7


class Page(HTMLParser):
    """The opening tags of a page, and the text between them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A dataset whose captions, from two sources, contain markup."""
    buffer = io.BytesIO()
    Image.new("RGB", (600, 300), (200, 30, 30)).save(buffer, "PNG")
    captions = [
        {"text": '"><script>alert(1)</script>', "source": "original", "model": None},
        {"text": "two words", "source": "synthetic", "model": "[bold]coca<b>"},
    ]
    row = {"image": buffer.getvalue(), "width": 600, "height": 300, "captions": captions}
    rows = [{"id": f"{n}</div>", **row} for n in range(9)]
    entry = write_shard(pa.Table.from_pylist(rows, SCHEMA), tmp_path / "train-0.parquet", 2)
    write_manifest(tmp_path, Manifest(name="<i>", version="1", recipe={}, splits={"train": [entry]}))
    return tmp_path


def test_a_sheet_escapes_captions(hostile: Path) -> None:
    code, output = invoke("inspect", str(hostile), "--sheet", str(hostile / "sheet.html"))
    assert code == 0
    assert "original 9; synthetic: [bold]coca<b> 9" in output
    page = Page((hostile / "sheet.html").read_text())
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "b", "i"})
    assert page.text.count('"><script>alert(1)</script>') == 9
    pictures = [attributes["src"] or "" for tag, attributes in page.tags if tag == "img"]
    with Image.open(io.BytesIO(base64.b64decode(pictures[0].partition(",")[2]))) as image:
        assert image.size == (224, 112)


def test_the_statistics_of_a_split_are_those_of_its_captions(hostile: Path) -> None:
    summary = summarize_split(open_dataset(hostile), "train")
    spreads = summary.spreads
    assert (summary.rows, summary.captions) == (9, 18)
    assert (spreads["words per caption"].low, spreads["words per caption"].high) == (1, 2)
    assert spreads["characters per caption"].mean == (27 + 9) / 2
    assert (spreads["shorter side"].median, spreads["longer side"].median) == (300, 600)
    ids = [row["id"] for row in sample_rows(open_dataset(hostile), "train", 3)]
    assert ids == ["0</div>", "4</div>", "8</div>"]
