"""A run that diverges writes the ids of its batches, in this process and in a Ray Train worker."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import pytest
import ray.train

from siclip.training.diverged import TrainingDiverged
from siclip.training.loop import Save
from siclip_platform.training.in_process import run_recipe
from siclip_platform.training.ray_worker import Failure, train_worker
from tests.support.diverging_parts import assert_ids_are_written, diverging_recipe

MESSAGE = r"up to step 1; the ids of their \w+ are in .*-diverged-at-1\.csv"


class Nowhere:
    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def milestone(self, step: int, metrics: Mapping[str, float], save: Save | None) -> None: ...


def test_a_diverging_run_writes_the_ids_of_its_batches(digits: Path, nano_teacher: Path, tmp_path: Path) -> None:
    recipe = diverging_recipe(digits, nano_teacher, tmp_path)
    with pytest.raises(TrainingDiverged, match=MESSAGE):
        run_recipe(recipe, Nowhere(), outputs=tmp_path / "out")
    assert_ids_are_written(recipe, tmp_path / "out")


def test_without_outputs_the_exception_has_the_ids(digits: Path, nano_teacher: Path, tmp_path: Path) -> None:
    recipe = diverging_recipe(digits, nano_teacher, tmp_path)
    with pytest.raises(TrainingDiverged, match="up to step 1") as diverged:
        run_recipe(recipe, Nowhere())
    assert [batch.step for batch in diverged.value.batches] == [0, 1]
    assert list(tmp_path.glob("**/*.csv")) == []


def test_a_diverging_worker_writes_the_ids_and_sends_where_they_are(
    digits: Path, nano_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # without Ray, the worker's own threads read
    recipe = diverging_recipe(digits, nano_teacher, tmp_path).updated({"data.reader": "threads"})
    context = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1)
    monkeypatch.setattr(ray.train, "get_context", lambda: context)
    monkeypatch.setattr(ray.train, "get_checkpoint", lambda: None)
    sent: SimpleQueue[Any] = SimpleQueue()
    outputs = tmp_path / "out"
    config = {"recipe": recipe.model_dump_json(), "queue": sent, "failures": None, "begin": None, "outputs": outputs}
    train_worker(config)
    items = [sent.get() for _ in range(sent.qsize())]
    assert items[0][0] == 0 and "cost/parameters_trainable" in items[0][1]
    failure = items[-1]
    assert isinstance(failure, Failure) and failure.error == "TrainingDiverged"
    assert str(outputs / f"{recipe.hash}-diverged-at-1.csv") in failure.message
    assert_ids_are_written(recipe, outputs)
