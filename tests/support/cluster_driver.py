"""A training on a small cluster that loses nodes: python cluster_driver.py OUT RECIPE LOSSES

LOSSES is a JSON object: step → ``data`` or ``train``, the role of the node that is killed after that step. Writes a
record of the training to OUT/happened.json.
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
from siclip_platform.recipes.load import load_recipe
from siclip_platform.training.ray_train import run_with_ray_train

TRAINING_CPUS = 2
"""More than a reading node has, so the training can only be scheduled on the training node."""


class SmallCluster:
    """A head without CPUs, two reading nodes with one CPU each and the label ``pool=data``, and a training node."""

    def __init__(self, folder: str) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "include_dashboard": True, "dashboard_port": 0, "temp_dir": folder},
        )
        self.data = [self.cluster.add_node(num_cpus=1, labels={"pool": "data"}) for _ in range(2)]
        self.training = self.cluster.add_node(num_cpus=TRAINING_CPUS)
        self.replacement: subprocess.Popen | None = None
        self.cluster.wait_for_nodes()

    def lose(self, role: str) -> str:
        """Kill a node, and replace it if it was the training node. Returns the id of the killed node."""
        node = self.data.pop() if role == "data" else self.training
        self.cluster.remove_node(node, allow_graceful=False)
        if role == "train":
            # With the command line: `Cluster` requires the main thread, and this is the logging thread.
            command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block"]
            options = [f"--address={self.cluster.address}", f"--num-cpus={TRAINING_CPUS}"]
            self.replacement = subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL)
        return str(node.node_id)

    def shutdown(self) -> None:
        if self.replacement is not None:
            process = psutil.Process(self.replacement.pid)
            for each in [process, *process.children(recursive=True)]:
                each.kill()
            self.replacement.wait()
        self.cluster.shutdown()


def reading_tasks() -> list[dict[str, Any]]:
    """Every attempt of a reading task of Ray Data: node, number of the attempt, and start in ms."""
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
    """Train while nodes are lost.

    Returns the losses that each step had, the lost nodes, the nodes that read at the start, the reading tasks, and
    the last checkpoint.
    """
    made: dict[int, list[float]] = {}
    lost: dict[str, dict[str, Any]] = {}

    def log(step: int, metrics: Mapping[str, float]) -> None:
        if "train/loss" in metrics:
            made.setdefault(step, []).append(metrics["train/loss"])
            if step in losses and losses[step] not in lost:
                lost[losses[step]] = {"time": time.time() * 1000, "node": small.lose(losses[step])}

    reading = [str(node.node_id) for node in small.data]
    with ray_cluster(Needs(concurrent=1, worker_cpus=TRAINING_CPUS), small.cluster.address):
        trained = run_with_ray_train(
            load_recipe(recipe_file), name="run", storage=out / "train", log=log, worker_cpus=TRAINING_CPUS
        )
        tasks = reading_tasks()
    happened = {"losses": made, "lost": lost, "reading": reading, "tasks": tasks}
    return happened | {"checkpoint": str(trained.checkpoint)}


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), {int(step): role for step, role in json.loads(sys.argv[3]).items()})
