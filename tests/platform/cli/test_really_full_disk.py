"""Work on a file system that becomes full: one sentence, nothing half-written stays, and a repeat completes it."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from captioning_parts import shapes_dataset
from PIL import Image

from siclip.checkpoints.formats import load_model, save_checkpoint
from siclip.errors import UserError
from siclip.models import create_model
from siclip_platform.cli.guard import guarded
from siclip_platform.datasets.derived.embeddings.config import EmbedConfig
from siclip_platform.datasets.derived.embeddings.embed import embed_dataset, plan_embedding
from siclip_platform.datasets.derived.stage import Pool, Task, TaskOutput, run_stage
from siclip_platform.datasets.importing.ingest import Imported, import_dataset
from siclip_platform.datasets.importing.parts import ImportConfig
from siclip_platform.datasets.importing.sources.columns import ColumnNames
from siclip_platform.datasets.importing.sources.find import find_source
from siclip_platform.datasets.manifest import open_dataset
from siclip_platform.search.ledger.journal import Journal
from siclip_platform.storage.atomic import replacing
from siclip_platform.studies.options import Options
from siclip_platform.studies.session import open_experiment
from siclip_platform.tracking.spool import Spool

HERE = Pool(here=True)
FULL = "the disk is full"


class Disk:
    """A small file system in memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filler = folder / "filler"

    def fill(self) -> None:
        """Leave no block free."""
        with self._filler.open("wb", buffering=0) as file:
            for size in (4096, 1):
                try:
                    while file.write(b"x" * size):
                        pass
                except OSError:
                    continue

    def free(self) -> None:
        self._filler.unlink()

    def grow(self) -> None:
        subprocess.run(["mount", "-o", "remount,size=32m", str(self.folder)], check=True)

    def temporary(self) -> list[Path]:
        return [path for path in self.folder.rglob("*") if path.suffix in (".tmp", ".making")]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "siclip-test", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"a file system cannot be mounted here: {mounted.stderr.strip()}")
    yield Disk(folder)
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def refused(command: Callable[[], object], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command says that ends because the disk is full."""
    with pytest.raises(SystemExit) as ended:
        guarded(command)
    said = capsys.readouterr().err.strip()
    assert ended.value.code == 2 and "Traceback" not in said and FULL in " ".join(said.split())
    return said


def test_an_import(disk: Disk, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng, lines = np.random.default_rng(0), ["image,caption"]
    for number in range(160):
        Image.fromarray(rng.integers(0, 256, (80, 80, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png,noise {number}")
    (tmp_path / "list.csv").write_text("\n".join(lines))

    def import_to(folder: Path) -> Imported:
        config = ImportConfig(shard_rows=40)
        found = find_source(str(tmp_path / "list.csv"), None, ColumnNames(), config.shard_rows)
        return import_dataset(found, folder, config, pool=HERE)

    assert refused(lambda: import_to(disk.folder / "d"), capsys).count("\n") < 4
    assert disk.temporary() == []
    disk.grow()
    import_to(disk.folder / "d")
    import_to(tmp_path / "undisturbed")
    assert open_dataset(disk.folder / "d").hash == open_dataset(tmp_path / "undisturbed").hash


@pytest.mark.slow
def test_embeddings(disk: Disk, tmp_path: Path, nano_teacher: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = EmbedConfig(teacher=str(nano_teacher), augmentations=50)
    plans = []
    for folder in (tmp_path / "d", disk.folder / "d"):
        shapes_dataset(folder)
        plans.append(plan_embedding(folder, "e", settings))
    whole, plan = embed_dataset(plans[0], pool=HERE).sidecar, plans[1]
    sizes = [path.stat().st_size for path in whole.shards("train")]
    # Not all shards fit, but the first one does.
    assert sizes[0] < 300_000 < sum(sizes)
    refused(lambda: embed_dataset(plan, pool=HERE), capsys)
    assert disk.temporary() == []
    kept = {path: path.stat().st_mtime_ns for path in plan.folder.glob("*.parquet")}
    assert 0 < len(kept) < 3
    disk.grow()
    assert embed_dataset(plan, pool=HERE).sidecar.manifest.splits == whole.manifest.splits
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_a_stage(disk: Disk, capsys: pytest.CaptureFixture[str]) -> None:
    ran: list[int] = []

    def work(folder: Path, task: Task) -> TaskOutput:
        number = task.payload["number"]
        ran.append(number)
        with replacing(folder / f"{number}.bin") as temporary:
            temporary.write_bytes(b"x" * 100_000)
        return TaskOutput(files=(f"{number}.bin",), result={})

    tasks = [Task(name=f"t{number}", payload={"number": number}) for number in range(6)]
    refused(lambda: run_stage(disk.folder, {}, tasks, work, pool=HERE), capsys)
    assert disk.temporary() == [] and ran == [0, 1, 2, 3]
    disk.grow()
    run_stage(disk.folder, {}, tasks, work, pool=HERE)
    assert ran == [0, 1, 2, 3, 3, 4, 5]


def test_a_checkpoint(disk: Disk, capsys: pytest.CaptureFixture[str]) -> None:
    path, model = disk.folder / "c.pt", create_model("siclip-nano")
    path.write_bytes(b"the last checkpoint")
    with pytest.raises(UserError, match="No space left on device") as error:
        save_checkpoint(path, model)
    assert "\n" not in str(error.value)
    assert [each.name for each in disk.folder.iterdir()] == ["c.pt"] and path.read_bytes() == b"the last checkpoint"
    disk.grow()
    save_checkpoint(path, model)
    load_model(path)


@pytest.mark.slow
def test_a_study_that_begins(disk: Disk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("siclip_platform.storage.full_disk.SECONDS", 0.2)

    def begin() -> None:
        with open_experiment(Options(out=disk.folder / "out"), "s"):
            raise AssertionError("the store does not fit")

    refused(begin, capsys)
    assert not list(disk.folder.rglob("mlflow.db")) and disk.temporary() == []


def test_the_records_of_a_study_wait(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("siclip_platform.storage.full_disk.PAUSE", 0.05)
    journal, spool = Journal(disk.folder / "s"), Spool(disk.folder / "s")
    values: dict[str, Any] = {"x": "y" * 5000}
    disk.fill()
    whole = journal.path.read_bytes()
    with monkeypatch.context() as short:
        short.setattr("siclip_platform.storage.full_disk.SECONDS", 0.2)
        with pytest.raises(UserError, match=r"journal\.jsonl: the disk is full; free space on it"):
            journal.suggested("trial-000", values)
    assert journal.path.read_bytes() == whole
    freeing = threading.Thread(target=lambda: (time.sleep(0.5), disk.free()))
    freeing.start()
    journal.suggested("trial-000", values)
    spool.begin("k", ("create", values))
    freeing.join()
    spool.close()
    journal.close()
    again, kept = Journal(disk.folder / "s"), Spool(disk.folder / "s")
    event = kept.next()
    assert again.entries["trial-000"].values == values and event is not None and event.payload == values
    again.close()
    kept.close()
