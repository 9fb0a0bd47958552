"""Several Ray Train workers compute what one computes; a recipe that cannot succeed is not retried."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from siclip.checkpoints.formats import load_model, read_checkpoint
from siclip.errors import UserError
from siclip.training.loop import Save
from siclip_platform.datasets.manifest import Manifest, write_manifest, write_shard
from siclip_platform.recipes.digits import digits_teacher
from siclip_platform.recipes.recipe import Recipe
from siclip_platform.training.in_process import run_recipe
from siclip_platform.training.ray_train import run_with_ray_train

pytestmark = pytest.mark.slow
WORKERS, STEPS = 2, 3


class Record:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.losses: dict[int, float] = {}
        self.scores: dict[str, float] = {}

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if "train/loss" in metrics:
            self.losses[step] = metrics["train/loss"]
        self.scores |= {k: v for k, v in metrics.items() if k.startswith("validation/")}

    def milestone(self, step: int, metrics: Mapping[str, float], save: Save | None) -> None:
        self.log(step, metrics)
        if save:
            save(self.folder / "local.pt")


@pytest.fixture(scope="module")
def recipe(digits: Path) -> Recipe:
    return digits_teacher(digits, steps=STEPS).updated(
        {
            "training.batch_size": 32,
            "training.batch_norm": "eval",
            "training.learning_rate": 2e-4,
            "training.threads": 1,
            "training.log_every": 1,
            "evaluation.validation_samples": 40,
            "data.augment.crop_scale": 0.6,
            "data.limit": 100,
        }
    )


@pytest.mark.long
def test_two_workers_compute_what_one_computes(recipe: Recipe, tmp_path: Path, own_ray: None) -> None:
    local = Record(tmp_path)
    threads = torch.get_num_threads()
    run_recipe(recipe, local)
    torch.set_num_threads(threads)
    remote = Record(tmp_path)
    trained = run_with_ray_train(
        recipe, name="two", storage=tmp_path / "train", log=remote.log, worker_cpus=0.5, workers=WORKERS
    )
    assert sorted(remote.losses) == sorted(local.losses) == list(range(1, STEPS + 1))
    np.testing.assert_allclose([*remote.losses.values()], [*local.losses.values()], rtol=1e-5)
    ours, theirs = load_model(tmp_path / "local.pt").state_dict(), load_model(trained.checkpoint).state_dict()
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-5, atol=1e-5)
    assert remote.scores.keys() == local.scores.keys() and remote.scores
    cursor = read_checkpoint(trained.checkpoint)["training"]["cursor"]
    assert (cursor["position"], cursor["epoch"]) == (STEPS * 32, 0)


def test_a_recipe_that_cannot_succeed_fails_at_once(
    recipe: Recipe, digits: Path, tmp_path: Path, own_ray: None
) -> None:
    from siclip_platform.datasets.manifest import open_dataset

    manifest = open_dataset(digits).manifest
    splits = {}
    for split, entries in manifest.splits.items():
        splits[split] = []
        for entry in entries:
            table = pq.read_table(digits / entry.path)
            if split == "train":
                images = [b"\xff\xd8\xff not an image" for _ in range(table.num_rows)]
                table = table.set_column(table.schema.get_field_index("image"), "image", [images])
            splits[split].append(write_shard(table, tmp_path / entry.path, 30))
    write_manifest(tmp_path, Manifest(name="broken", version="1", recipe={}, splits=splits))
    starts: list[int] = []
    with pytest.raises(UserError, match=r"the image of sample train-\d+ .* cannot be decoded"):
        run_with_ray_train(
            recipe.updated({"data.path": str(tmp_path)}),
            name="broken",
            storage=tmp_path / "train",
            log=lambda step, metrics: starts.append(step),
            worker_cpus=0.5,
            workers=WORKERS,
        )
    assert starts in ([], [0])  # it started once, and no step was trained


def test_a_batch_that_cannot_be_divided_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"batch_size 32 cannot be divided among 3 workers"):
        run_with_ray_train(recipe, name="x", storage=tmp_path, log=lambda *_: None, workers=3)
