"""Import, captioning and embedding survive a killed worker or driver; finished tasks are not repeated."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from captioning_parts import fitted_coca, shapes_dataset
from pair_shards import write_pairs

from siclip_platform.datasets.derived.captions import caption
from siclip_platform.datasets.derived.captions.caption import caption_dataset
from siclip_platform.datasets.derived.captions.config import CaptionConfig
from siclip_platform.datasets.derived.embeddings import embed
from siclip_platform.datasets.derived.embeddings.config import EmbedConfig
from siclip_platform.datasets.derived.embeddings.embed import embed_dataset, plan_embedding
from siclip_platform.datasets.derived.stage import Pool, Task, TaskOutput, Work
from siclip_platform.datasets.importing import ingest
from siclip_platform.datasets.importing.parts import ImportConfig
from siclip_platform.datasets.importing.sources.columns import ColumnNames
from siclip_platform.datasets.importing.sources.find import find_source

SHARDS = 3

DRIVER = """
import sys
from pathlib import Path
from siclip_platform.datasets.derived.captions import caption
from siclip_platform.datasets.derived.captions.caption import caption_dataset
from siclip_platform.datasets.derived.captions.config import CaptionConfig
from siclip_platform.datasets.derived.embeddings.config import EmbedConfig
from siclip_platform.datasets.derived.embeddings.embed import embed_dataset, plan_embedding
from siclip_platform.datasets.derived.stage import Pool
kind, data, settings, here = sys.argv[1], Path(sys.argv[2]), sys.argv[3], Pool(here=True)
if kind == "captions":
    caption_dataset(data, "built", CaptionConfig.model_validate_json(settings), pool=here)
else:
    embed_dataset(plan_embedding(data, "built", EmbedConfig.model_validate_json(settings)), pool=here)
"""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, nano_teacher: Path) -> dict[str, Any]:
    """Settings of both stages. The CoCa is nearly untrained, so that its captions differ between images."""
    coca = fitted_coca(tmp_path_factory.mktemp("coca"), steps=1)
    return {"captions": coca, "embeddings": EmbedConfig(teacher=str(nano_teacher), augmentations=2)}


def make(settings: CaptionConfig | EmbedConfig, data: Path, pool: Pool) -> str:
    """Build the sidecar and return the hash of its manifest."""
    if isinstance(settings, CaptionConfig):
        return str(caption_dataset(data, "built", settings, pool=pool).sidecar.hash)
    return str(embed_dataset(plan_embedding(data, "built", settings), pool=pool).sidecar.hash)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, settings: dict[str, Any]) -> Callable[[str], str]:
    """The hash that an uninterrupted run gives."""

    @functools.cache
    def make_once(kind: str) -> str:
        folder = tmp_path_factory.mktemp("undisturbed") / "data"
        shapes_dataset(folder, SHARDS)
        return make(settings[kind], folder, Pool(here=True))

    return make_once


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.parametrize("kind", [pytest.param("captions", marks=pytest.mark.long), "embeddings"])
def test_a_killed_driver_keeps_its_shards(
    tmp_path: Path, settings: dict[str, Any], expected: Callable[[str], str], kind: str
) -> None:
    data = tmp_path / "data"
    shapes_dataset(data, SHARDS)
    folder = data / kind / "built"
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, kind, str(data), settings[kind].model_dump_json()])
    until = time.monotonic() + 120
    while not list(folder.glob(".done/*.json")) and driver.poll() is None and time.monotonic() < until:
        time.sleep(0.002)
    driver.kill()
    assert driver.wait() == -signal.SIGKILL
    finished = [folder / f"train-{path.stem}.parquet" for path in folder.glob(".done/*.json")]
    kept = {path: path.stat().st_mtime_ns for path in finished}
    # The kill may come after the last shard, but never after the manifest.
    assert 0 < len(kept) < SHARDS + 1 and not (folder / "manifest.json").exists()
    assert make(settings[kind], data, Pool(here=True)) == expected(kind)
    assert {path: path.stat().st_mtime_ns for path in finished} == kept
    assert not (folder / ".done").exists()


def step_killed_once(base: type, log: Path) -> type:
    """Return a step that counts its parts and once kills its own process, after the first part."""

    class KilledOnce(base):
        def __call__(self, part: Any) -> Any:
            attempts = log / base.__name__
            later = attempts.exists()
            with attempts.open("a") as file:
                file.write("part\n")
            if later:
                with suppress(FileExistsError):
                    (log / f"killed in {base.__name__}").touch(exist_ok=False)
                    os.kill(os.getpid(), signal.SIGKILL)
            return super().__call__(part)

    return KilledOnce


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.usefixtures("own_ray")
@pytest.mark.parametrize(
    ("kind", "module", "steps"),
    [
        ("captions", caption, (caption.Decode, caption.Generate, caption.Clean)),
        pytest.param("embeddings", embed, (embed.Crop, embed.Encode, embed.Quantize), marks=pytest.mark.long),
    ],
)
def test_a_sidecar_is_equal_with_two_actors_and_a_kill_in_each_step(
    tmp_path: Path,
    settings: dict[str, Any],
    expected: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    module: ModuleType,
    steps: tuple[type, ...],
) -> None:
    data = tmp_path / "data"
    shapes_dataset(data, SHARDS)
    hash_without_kill = expected(kind)
    log = tmp_path / "log"
    log.mkdir()
    for base in steps:
        monkeypatch.setattr(module, base.__name__, step_killed_once(base, log))
    assert make(settings[kind], data, Pool(actors=2)) == hash_without_kill
    for base in steps:
        assert (log / f"killed in {base.__name__}").exists()
        # Every shard is one part; what the killed process had is repeated.
        assert len((log / base.__name__).read_text().split()) > SHARDS


def killed_at(log: Path, whole: Work, at: str) -> Work:
    """Return work that logs every task and once kills its own process after task ``at`` has written its files."""

    def work(folder: Path, task: Task) -> TaskOutput:
        with (log / folder.name).open("a") as attempts:
            attempts.write(f"{task.name}\n")
        built = whole(folder, task)
        marker = log / f"killed in {folder.name}"
        if at in (task.name, "") and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return built

    return work


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.usefixtures("own_ray")
def test_a_killed_worker_repeats_one_source_part_of_an_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In both stages: the one that writes shards, and the one that rewrites shards without duplicates."""
    write_pairs(tmp_path / "source", 120, 12, 0.2)
    config = ImportConfig(shard_rows=12, drop_duplicates=True)
    source = find_source(str(tmp_path / "source"), None, ColumnNames(), 12)

    def run(folder: str, pool: Pool) -> ingest.Imported:
        return ingest.import_dataset(source, tmp_path / folder, config, max_bad_share=1, pool=pool)

    expected = run("undisturbed", Pool(here=True))
    log = tmp_path / "log"
    log.mkdir()
    monkeypatch.setattr(ingest, "import_part", killed_at(log, ingest.import_part, "00007"))
    monkeypatch.setattr(ingest, "change_shard", killed_at(log, ingest.change_shard, ""))
    found = run("killed", Pool())
    assert (found.dataset.hash, found.read, found.rejected) == (
        expected.dataset.hash,
        expected.read,
        expected.rejected,
    )
    parts = Counter((log / "parts").read_text().split())
    assert parts == {f"{number:05d}": 2 if number == 7 else 1 for number in range(10)}
    again = Counter((log / "kept").read_text().split())
    assert sorted(again.values()) == [*[1] * (len(again) - 1), 2]
