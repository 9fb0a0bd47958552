"""The training of a few steps: killed after a checkpoint, resumed, and checked that it went on from there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from siclip.errors import UserError
from siclip_platform.metrics import stored_key
from siclip_platform.rehearsal.job import Rehearsal
from siclip_platform.rehearsal.watched import Watched, watch
from siclip_platform.report.read.runs import TRAIN_LOSS
from siclip_platform.report.read.store import Store
from siclip_platform.tracking import default_tracking_uri

COMMAND = ("-m", "siclip_platform")
RECIPE = "recipe.yaml"
OUT = "train"
NAME = "train"
SNAPSHOT = "checkpoint_manager_snapshot.json"  # Ray Train's list of what it can resume from


def checkpoint(job: Rehearsal) -> Path:
    """The trained model."""
    return job.folder / OUT / NAME / f"{NAME}.pt"


def saved_step(job: Rehearsal) -> int:
    """The step of the checkpoint that a resumed run would start from; 0: there is none yet."""
    path = job.folder / OUT / NAME / "train" / NAME / SNAPSHOT
    try:
        latest = json.loads(path.read_bytes())["latest_checkpoint_result"]
    except (FileNotFoundError, ValueError):  # it is being written
        return 0
    return int(latest["metrics"]["step"]) if latest else 0


def train_and_kill(job: Rehearsal) -> Watched:
    """Train until the second checkpoint exists, and kill all processes; a training that ends first was not killed."""
    words = (*COMMAND, "train", "--recipe", str(job.folder / RECIPE), "--out", str(job.folder / OUT))
    return watch(words, job.folder / "train.log", until=lambda: 2 <= saved_step(job) < job.steps)


def resume(job: Rehearsal) -> Watched:
    """Resume the killed training to its end."""
    words = (*COMMAND, "train", "--resume", NAME, "--out", str(job.folder / OUT))
    return watch(words, job.folder / "resume.log")


def check_resumed(job: Rehearsal, saved: int, killed: float) -> tuple[float, int]:
    """Check that the resumed training went on from its checkpoint; return its samples per second, its GPU memory.

    Args:
        job: whose training was resumed.
        saved: step of the checkpoint.
        killed: when the first session was killed, in seconds since 1970.

    Raises:
        UserError: it began at another step.
    """
    store = Store(default_tracking_uri(job.folder / OUT))
    runs = [run for run in store.search(store.experiment_ids(None)) if run.kind == "train"]
    history = [point for run in runs for point in store.client.get_metric_history(run.run_id, stored_key(TRAIN_LOSS))]
    # the steps of the first session are not looked at: what it logged last may not have reached the driver
    check_steps(sorted(point.step for point in history if point.timestamp > 1000 * killed), saved, job.steps)
    newest = runs[-1]
    # the first of them waits for the data
    speeds = [speed for step, speed in store.curve(newest, "train/samples_per_second") if step > saved + 1]
    peak = newest.metrics.get("cost/peak_memory_mib", 0) * 2**20 if job.on_gpu else 0
    return median(speeds), int(peak)


def check_steps(steps: Sequence[int], saved: int, last: int) -> None:
    """Check the steps that a session logged: it began right after the checkpoint and ended with the last step.

    Raises:
        UserError: it is otherwise.
    """
    if list(steps) != list(range(saved + 1, last + 1)):
        raise UserError(
            f"the training was killed after the checkpoint of step {saved}, and the resumed one did not go on from "
            f"there: its MLflow run has the steps {', '.join(map(str, steps)) or 'none'}"
        )
