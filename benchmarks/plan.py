"""Predictions of `siclip-platform plan` compared with measurements: step time and bytes on disk.

    python benchmarks/plan.py [--rounds 3] [--seconds 20]

Step time: the recipes of the digit scenes' student (shared trunk) and teacher (all weights trained) are calibrated as
by the command, then trained on digit scenes including reading and decoding; the two alternate. Storage: the size of
4,000 scenes, predicted from 500.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from siclip.checkpoints.formats import save_checkpoint
from siclip.models import create_model
from siclip.training.loop import Save
from siclip_platform.datasets.digits.composition import DigitScenesConfig, compose_shard, shard_specs
from siclip_platform.datasets.manifest import Manifest, write_manifest, write_shard
from siclip_platform.plan.calibration import calibrate, calibration_trainer, two_sizes
from siclip_platform.plan.job import TeacherSource
from siclip_platform.plan.storage import measure_rows
from siclip_platform.recipes.digits import digits_student, digits_teacher
from siclip_platform.recipes.recipe import Recipe
from siclip_platform.tracking import git_commit
from siclip_platform.training.in_process import run_recipe

RESULT = Path(__file__).resolve().parent / "results" / "plan.json"
# Steps at the start of a real run that are not counted: first reads, calibration of BatchNorms.
SKIPPED = 4


class Throughput:
    """A `Reporter` that keeps the loop's throughput and its wait for data."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.waits: list[float] = []

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if step > SKIPPED and "train/samples_per_second" in metrics:
            self.rates.append(metrics["train/samples_per_second"])
            self.waits.append(metrics["train/data_wait_share"])

    def milestone(self, step: int, metrics: Mapping[str, float], save: Save | None) -> None:
        """Evaluations are not timed."""


def scenes(folder: Path, count: int) -> Path:
    folder.mkdir()
    config = DigitScenesConfig(train_scenes=count, validation_scenes=20, test_scenes=1, shard_rows=1000)
    splits: dict[str, list[Any]] = {}
    for spec in shard_specs(config):
        splits.setdefault(spec.split, []).append(write_shard(compose_shard(spec), folder / spec.file_name, 250))
    write_manifest(folder, Manifest(name="digit-scenes", version="1", recipe={}, splits=splits))
    return folder


def real_step_seconds(recipe: Recipe) -> tuple[float, float]:
    """Median seconds per step of a real run without its first steps, and the share spent waiting for data."""
    seen = Throughput()
    run_recipe(recipe, seen)
    return recipe.training.batch_size / statistics.median(seen.rates), statistics.median(seen.waits)


def step_time(recipe: Recipe, source: TeacherSource, rounds: int, seconds: float) -> dict[str, Any]:
    rows = []
    for _ in range(rounds):
        found = calibrate(lambda size: calibration_trainer(recipe, size, source), two_sizes(recipe), seconds)
        predicted = found.step_seconds(recipe.training.batch_size)
        real, waited = real_step_seconds(recipe)
        ratio = predicted / real
        times = {"predicted_seconds": predicted, "real_seconds": real, "data_wait_share": waited}
        rows.append({**times, "ratio": ratio, "spread_of_calibration": found.spread})
        print(f"{recipe.model.name}: predicted {predicted:.3f} s, real {real:.3f} s, ratio {ratio:.3f}")
    ratios = [row["ratio"] for row in rows]
    spread = {"ratio_least": min(ratios), "ratio_largest": max(ratios)}
    return {"rounds": rows, "ratio_median": statistics.median(ratios), **spread}


def measure(folder: Path, rounds: int, seconds: float) -> dict[str, Any]:
    small, large = scenes(folder / "small", 500), scenes(folder / "large", 4000)
    rows = measure_rows(small, "train")
    predicted = 4000 * (rows.image + rows.captions + rows.other)
    written = sum(path.stat().st_size for path in large.glob("train-*.parquet"))
    print(f"4,000 scenes: predicted {predicted:,.0f} bytes, written {written:,}, ratio {predicted / written:.4f}")
    checkpoint = folder / "teacher.pt"
    torch.manual_seed(0)
    save_checkpoint(checkpoint, create_model("mobileclip-nano"))
    changes = {"training.log_every": 2, "training.evaluate_every": 0, "evaluation.validation_samples": 20}
    student = digits_student(large, checkpoint, steps=24).updated(changes)
    teacher = digits_teacher(large, steps=24).updated(changes)
    return {
        "storage": {"predicted_bytes": predicted, "written_bytes": written, "ratio": predicted / written},
        "step_time": {
            "siclip-nano, shared trunk, batch 128": step_time(student, "shared trunk", rounds, seconds),
            "mobileclip-nano, all trained, batch 128": step_time(teacher, "none", rounds, seconds),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0, help="length of each calibration")
    parser.add_argument("--out", type=Path, default=RESULT, metavar="FILE.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), options.rounds, options.seconds)
    machine = {"processor": platform.machine(), "cores": os.cpu_count()}
    result = {"machine": machine, "commit": git_commit(), "versions": {"torch": version("torch")}, **found}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
