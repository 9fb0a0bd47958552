"""Tasks of Ray Data do not read further ahead than the object store has room for."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import ray

from siclip.models import model_config
from siclip_platform.cluster.connect import prepare_environment, quieten
from siclip_platform.recipes.digits import digits_student
from siclip_platform.stream import Stream, parts, ray_reader
from siclip_platform.stream.ray_reader import ray_batches

MIB = 2**20
STORE_BYTES = 160 * MIB
SIZE = 256
ROWS, BATCH = 2400, 24  # 450 MiB of pixels: without a bound the tasks would fill the store within seconds


@pytest.fixture
def spilled(tmp_path: Path) -> Iterator[Path]:
    """A Ray with a small object store, and the folder that it spills to."""
    prepare_environment(verbose=False)
    ray.init(
        address="local",
        num_cpus=4,
        object_store_memory=STORE_BYTES,
        object_spilling_directory=str(tmp_path),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    quieten(verbose=False)
    yield tmp_path
    ray.shutdown()


@pytest.mark.slow
def test_a_slow_training_makes_nothing_spill(digits: Path, spilled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound of this store is a quarter of it; the tasks send pixels, the most that they can."""
    monkeypatch.setattr(ray_reader, "BYTES_AHEAD", STORE_BYTES // 4)
    monkeypatch.setattr(parts, "BLOCK_BYTES", 4 * MIB)
    recipe = digits_student(digits).updated({"data.window_row_groups": 1})
    model = model_config("siclip-nano", image={"image_size": SIZE})
    stream = replace(Stream.of(recipe, model), concurrent_reads=2)
    # the training computes for six seconds in all, in which tasks without a bound read everything
    slow = count()
    received = 0
    for batch in ray_batches(stream, BATCH, 0, ROWS, decode="reader"):
        received += len(batch)
        if next(slow) < 6:
            time.sleep(1.0)
    assert received == ROWS
    assert not files(spilled)
    # more than the store holds: the folder is where a spill shows
    held = [ray.put(np.ones(STORE_BYTES // 4, np.uint8)) for _ in range(6)]
    assert len(held) == 6 and files(spilled)


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]
