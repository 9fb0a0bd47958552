"""A small source is imported without Ray, unless a cluster is named."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from siclip.errors import UserError
from siclip_platform.cli import app
from siclip_platform.cluster import connect
from siclip_platform.datasets.importing import small
from siclip_platform.datasets.importing.sources.columns import ColumnNames
from siclip_platform.datasets.importing.sources.find import find_source
from siclip_platform.datasets.manifest import open_dataset

Command = Callable[..., Any]


def picture(number: int) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Imports two archives with the given words; starting or joining Ray is an error with its address."""
    for name in "ab":
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            for number in range(3):
                for suffix, content in (("png", picture(number + 3 * (name == "b"))), ("txt", b"noise")):
                    member = tarfile.TarInfo(f"{name}{number}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))

    def start(needs: connect.Needs, address: str | None = None, verbose: bool = False) -> Any:
        raise UserError(f"Ray at {address}")

    monkeypatch.setattr(connect, "ray_cluster", start)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def run(*words: str) -> Any:
        sources = [str(tmp_path / "a.tar"), str(tmp_path / "b.tar")]
        return CliRunner().invoke(
            app, ["data", "import", *sources, str(tmp_path / "out"), "--split", "train", *words]
        )

    return run


def test_a_small_source_is_imported_without_ray(command: Command, tmp_path: Path) -> None:
    done = command()
    assert done.exit_code == 0, done.output
    assert open_dataset(tmp_path / "out").rows("train") == 6


def test_a_named_cluster_and_a_large_source_use_ray(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    assert str(command("--address", "head:6379").exception) == "Ray at head:6379"
    with monkeypatch.context() as set_:
        set_.setenv("RAY_ADDRESS", "auto")
        assert str(command().exception) == "Ray at None"
    monkeypatch.setattr(small, "SMALL_BYTES", 1000)
    assert str(command().exception) == "Ray at None"


def test_a_table_is_small_if_one_task_reads_it(tmp_path: Path) -> None:
    """Its rows may name images elsewhere, so its bytes do not tell."""
    rows = [{"image": picture(number), "caption": "noise"} for number in range(4)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs.parquet", row_group_size=2)
    whole, cut = (find_source(str(tmp_path / "pairs.parquet"), None, ColumnNames(), rows) for rows in (100, 2))
    assert (len(whole.parts), small.is_small(whole)) == (1, True)
    assert (len(cut.parts), small.is_small(cut)) == (2, False)
