"""A training on several nodes, where some read data and another trains: losing nodes changes nothing."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
import yaml

from siclip.checkpoints.formats import load_model, read_checkpoint
from siclip.data.batch import Batch
from siclip.errors import UserError
from siclip.training.loop import Save, train
from siclip_platform.recipes.digits import digits_teacher
from siclip_platform.recipes.recipe import Recipe
from siclip_platform.stream.ray_reader import check_reader_nodes
from siclip_platform.training.build import prepare

DRIVER = Path(__file__).resolve().parents[2] / "support" / "cluster_driver.py"
STEPS, BATCH, ROWS = 45, 32, 240  # six epochs


@pytest.fixture(scope="module")
def recipe(digits: Path) -> Recipe:
    return digits_teacher(digits, steps=STEPS).updated(
        {
            # Pixels: Ray keeps blocks as small as these files with the driver, where a lost node takes none along.
            "data.decode": "reader",
            "data.reader_nodes": {"pool": "data"},
            "data.window_row_groups": 1,
            "training.batch_size": BATCH,
            "training.threads": 1,
            "training.log_every": 1,
            "training.evaluate_every": 0,
            "training.checkpoint_every": 3,
            "evaluation.validation_samples": 10,
        }
    )


@dataclass
class Undisturbed:
    """The same training in this process, with batches read by threads."""

    losses: dict[int, float] = field(default_factory=dict)
    samples: list[int] = field(default_factory=list)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.losses[step] = metrics["train/loss"]

    def milestone(self, step: int, metrics: Mapping[str, float], save: Save | None) -> None:
        """Nothing is saved."""


@pytest.fixture(scope="module")
def undisturbed(recipe: Recipe) -> Undisturbed:
    found, threads = Undisturbed(), torch.get_num_threads()
    prepared = prepare(recipe)

    def batches(start: int, stop: int) -> Iterator[Batch]:
        for batch in prepared.batches(start, stop):
            found.samples += batch.image_ids.tolist()
            yield batch

    train(prepared.trainer, batches, found, prepared.evaluate)
    torch.set_num_threads(threads)
    found.weights = prepared.trainer.model.state_dict()
    return found


def on_a_cluster(recipe: Recipe, out: Path, losses: Mapping[int, str]) -> dict[str, Any]:
    """Train on a cluster that loses nodes; returns the driver's record. ``losses``: see `cluster_driver`."""
    file = out / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    env = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    command = [sys.executable, str(DRIVER), str(out), str(file), json.dumps(losses)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=540, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    happened: dict[str, Any] = json.loads((out / "happened.json").read_text())
    return happened


def check_nothing_changed(happened: dict[str, Any], undisturbed: Undisturbed) -> None:
    """Each step was made on the same batch, an epoch has each sample once, and the weights are the same."""
    for epoch in range(STEPS * BATCH // ROWS):
        assert len(set(undisturbed.samples[epoch * ROWS : (epoch + 1) * ROWS])) == ROWS
    made = {int(step): set(losses) for step, losses in happened["losses"].items()}
    assert made == {step: {loss} for step, loss in undisturbed.losses.items()}
    weights = load_model(happened["checkpoint"]).state_dict()
    assert all(torch.equal(weights[name], value) for name, value in undisturbed.weights.items())
    assert read_checkpoint(happened["checkpoint"])["training"]["cursor"]["position"] == STEPS * BATCH


def check_readers(happened: dict[str, Any]) -> None:
    """Only nodes with the label read, and the remaining one repeats the tasks of the lost one."""
    lost = happened["lost"]["data"]
    first = [task for task in happened["tasks"] if task["attempt"] == 0]
    repeated = [task for task in happened["tasks"] if task["attempt"] > 0]
    assert {task["node"] for task in first} == set(happened["reading"]) and lost["node"] in happened["reading"]
    assert {task["node"] for task in repeated} == set(happened["reading"]) - {lost["node"]}
    assert all(task["start"] > lost["time"] for task in repeated)


@pytest.mark.long
@pytest.mark.chaos
def test_a_lost_reading_node_changes_nothing(recipe: Recipe, undisturbed: Undisturbed, tmp_path: Path) -> None:
    happened = on_a_cluster(recipe, tmp_path, {3: "data"})
    check_readers(happened)
    check_nothing_changed(happened, undisturbed)
    assert all(len(losses) == 1 for losses in happened["losses"].values())


@pytest.mark.long
@pytest.mark.chaos
def test_a_lost_training_node_changes_nothing(recipe: Recipe, undisturbed: Undisturbed, tmp_path: Path) -> None:
    """Like a spot node: the node is lost, another one joins, and the training resumes from its last checkpoint."""
    happened = on_a_cluster(recipe, tmp_path, {3: "data", 20: "train"})
    check_readers(happened)
    check_nothing_changed(happened, undisturbed)
    assert any(len(losses) == 2 for losses in happened["losses"].values())  # steps that were repeated
    assert all(len(happened["losses"][str(step)]) == 1 for step in range(1, 15))


def test_labels_that_no_node_has_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [
        {"Alive": True, "Labels": {"pool": "train"}},
        {"Alive": True, "Labels": {"pool": "data", "zone": "a"}},
        {"Alive": False, "Labels": {"pool": "gone"}},
    ]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    check_reader_nodes({"pool": "data"})
    for labels in ({"pool": "gone"}, {"pool": "train", "zone": "a"}):
        expected = ",".join(f"{name}={value}" for name, value in labels.items())
        with pytest.raises(UserError, match=f"no node .* data.reader_nodes: .*ray start --labels {expected} "):
            check_reader_nodes(labels)


def test_reader_nodes_require_the_ray_reader(recipe: Recipe) -> None:
    with pytest.raises(UserError, match="reader_nodes place the tasks of Ray Data: remove this, or reader: threads"):
        recipe.updated({"data.reader": "threads"})
