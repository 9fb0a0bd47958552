"""A training on a small cluster whose nodes are taken away: python cluster_driver.py OUT RECIPE LOSSES

LOSSES: a JSON object, step → ``data`` or ``train``: the kind of node that is killed after it. Writes what happened to
OUT/happened.json.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from siclip_platform.cluster.connect import Needs, prepare_environment, ray_cluster
from siclip_platform.recipes.recipe import load_recipe
from siclip_platform.training.ray_train import run_with_ray_train

TRAINING_CPUS = 2
"""More than a node that reads has, so the training finds room only where it should."""


class SmallCluster:
    """A head without CPUs, two nodes of one CPU that read, with the label ``pool=data``, and one that trains."""

    def __init__(self, folder: str) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "include_dashboard": True, "dashboard_port": 0, "temp_dir": folder},
        )
        self.data = [self.cluster.add_node(num_cpus=1, labels={"pool": "data"}) for _ in range(2)]
        self.training = self.cluster.add_node(num_cpus=TRAINING_CPUS)
        self.came: subprocess.Popen | None = None
        self.cluster.wait_for_nodes()

    def lose(self, kind: str) -> str:
        """Kill a node, start another where it trained; the id of the one that went."""
        node = self.data.pop() if kind == "data" else self.training
        self.cluster.remove_node(node, allow_graceful=False)
        if kind == "train":  # by a command: the class wants the main thread, and this is the one that logs
            command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block"]
            options = [f"--address={self.cluster.address}", f"--num-cpus={TRAINING_CPUS}"]
            self.came = subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL)
        return str(node.node_id)

    def shutdown(self) -> None:
        if self.came is not None:
            came = psutil.Process(self.came.pid)
            for process in [came, *came.children(recursive=True)]:
                process.kill()
            self.came.wait()
        self.cluster.shutdown()


def reading_tasks() -> list[dict[str, Any]]:
    """Each attempt at a task of Ray Data that reads: where, which, since when in ms."""
    from ray.util.state import list_tasks

    tasks = [task for task in list_tasks(detail=True, limit=10_000) if task.name == "MapBatches(read)"]
    return [{"node": task.node_id, "attempt": task.attempt_number, "start": task.start_time_ms} for task in tasks]


def main(out: Path, recipe_file: Path, losses: Mapping[int, str]) -> None:
    prepare_environment(verbose=False)
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        os.environ |= {"RAY_TMPDIR": folder, "RAY_raylet_start_wait_time_s": "180"}
        (Path(folder) / "ray").mkdir()
        small = SmallCluster(folder)
        try:
            happened = train_on(small, out, recipe_file, losses)
        finally:
            small.shutdown()
    (out / "happened.json").write_text(json.dumps(happened))


def train_on(small: SmallCluster, out: Path, recipe_file: Path, losses: Mapping[int, str]) -> dict[str, Any]:
    figures: dict[int, list[float]] = {}
    lost: dict[str, dict[str, Any]] = {}

    def log(step: int, metrics: Mapping[str, float]) -> None:
        if "train/loss" in metrics:
            figures.setdefault(step, []).append(metrics["train/loss"])
            if step in losses and losses[step] not in lost:
                lost[losses[step]] = {"time": time.time() * 1000, "node": small.lose(losses[step])}

    reading = [str(node.node_id) for node in small.data]
    with ray_cluster(Needs(concurrent=1, worker_cpus=TRAINING_CPUS), small.cluster.address):
        trained = run_with_ray_train(
            load_recipe(recipe_file), name="run", storage=out / "train", log=log, worker_cpus=TRAINING_CPUS
        )
        tasks = reading_tasks()
    return {
        "losses": figures, "lost": lost, "reading": reading, "tasks": tasks, "checkpoint": str(trained.checkpoint)
    }  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), {int(step): kind for step, kind in json.loads(sys.argv[3]).items()})
