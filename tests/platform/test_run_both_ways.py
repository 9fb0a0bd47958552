"""The same recipe and seed give the same losses under Ray Train and in-process, and a run can go on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from siclip.checkpoints.formats import load_model, read_checkpoint
from siclip.training.loop import Save
from siclip_platform.presets import digits_student
from siclip_platform.recipe import Recipe
from siclip_platform.trainer import run_in_process, run_with_ray_train

pytestmark = pytest.mark.slow


class Record:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.figures: dict[int, dict[str, float]] = {}

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        kept = {k: v for k, v in metrics.items() if not k.startswith(("cost/", "train/samples"))}
        if kept:
            self.figures.setdefault(step, {}).update(kept)

    def milestone(self, step: int, metrics: Mapping[str, float], save: Save | None) -> None:
        self.log(step, metrics)
        if save:
            save(self.folder / f"{step}.pt")


@pytest.fixture(scope="module")
def recipe(digits: Path, nano_teacher: Path) -> Recipe:
    return digits_student(digits, nano_teacher, steps=12).updated(
        {
            "training.batch_size": 32,
            "training.log_every": 1,
            "training.evaluate_every": 6,
            "evaluation.validation_samples": 40,
            "loss.pair_matching": 0.3,
            "loss.negatives": "uniform",
        }
    )


def test_ray_train_and_in_process_agree_to_the_last_bit(recipe: Recipe, tmp_path: Path, own_ray: None) -> None:
    local = Record(tmp_path)
    threads = torch.get_num_threads()
    run_in_process(recipe, local)
    torch.set_num_threads(threads)
    remote = Record(tmp_path)
    trained = run_with_ray_train(recipe, name="run", storage=tmp_path / "train", log=remote.log)

    assert sorted(local.figures) == list(range(1, 13))
    assert remote.figures == local.figures
    ours, theirs = load_model(tmp_path / "12.pt").state_dict(), load_model(trained.checkpoint).state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert read_checkpoint(trained.checkpoint)["training"]["step"] == 12
    assert trained.metrics["validation/mean_recall@1"] == local.figures[12]["validation/mean_recall@1"]
