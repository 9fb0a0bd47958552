"""CPU seconds of short commands, and of the imports of a training process.

    python benchmarks/commands.py [--rounds 3] [--images 1000]

CPU seconds of the command's process and the children that it waited for, not wall time: the time in which a loaded
machine runs them says little. Each is measured in every round; the table has the medians beside the aims. There is no
peer: the parts that are not ours, ``import torch`` and ``import timm``, are measured in the same rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from siclip.checkpoints.formats import save_checkpoint
from siclip.models import create_model
from siclip_platform.tracking import git_commit

RESULT = Path(__file__).resolve().parent / "results" / "commands.json"
SIDE = 96


@dataclass(frozen=True)
class Timed:
    """What is measured.

    Attributes:
        name: in the table.
        words: of the command line, after Python.
        aim: CPU seconds; None: a part that is not ours.
        output: removed before each round.
    """

    name: str
    words: tuple[str, ...]
    aim: float | None = None
    output: Path | None = None


def commands(folder: Path, images: int) -> list[Timed]:
    def ours(*words: str) -> tuple[str, ...]:
        return ("-m", "siclip_platform", *words)

    source, checkpoint = str(folder / "images"), str(folder / "model.pt")
    data, index = folder / "data", folder / "index"
    training = "import siclip_platform.training.ray_worker"
    return [
        Timed("import torch", ("-c", "import torch")),
        Timed("import timm", ("-c", "import timm")),
        Timed("imports of a Ray Train worker's function", ("-c", training)),
        Timed("--help", ours("--help"), 1),
        Timed("data import --help", ours("data", "import", "--help"), 1),
        Timed("plan", ours("plan"), 3),
        Timed("model describe siclip-nano", ours("model", "describe", "siclip-nano"), 4),
        Timed("model describe siclip-s0", ours("model", "describe", "siclip-s0"), 4),
        Timed("doctor", ours("doctor", "--out", str(folder / "runs")), 5),
        Timed(
            f"data import of {images:,} images",
            ours("data", "import", source, str(data), "--validation-share", "0.1"),
            8,
            data,
        ),
        Timed(f"embed of {images:,} images, nano", ours("embed", checkpoint, source, str(index)), None, index),
    ]


def prepare(folder: Path, images: int) -> None:
    """Write noisy JPEG files with captions, and an untrained model."""
    (folder / "images").mkdir()
    draw = np.random.default_rng(0)
    for number in range(images):
        colour = draw.integers(0, 200, 3)
        pixels = colour + draw.integers(0, 50, (SIDE, SIDE, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / f"{number:06d}.jpg", quality=90)
        (folder / "images" / f"{number:06d}.txt").write_text(f"a square of colour {number}")
    torch.manual_seed(0)
    save_checkpoint(folder / "model.pt", create_model("siclip-nano"))


def cpu_seconds(timed: Timed) -> float:
    if timed.output is not None:
        shutil.rmtree(timed.output, ignore_errors=True)
    # Without a cluster, which would do the work in processes that are not measured.
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    process = subprocess.Popen(
        [sys.executable, *timed.words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment
    )
    assert process.stderr is not None
    said = process.stderr.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    code = os.waitstatus_to_exitcode(status)
    process.returncode = code
    # `doctor` ends with 1 where this machine has a problem.
    if code and timed.name != "doctor":
        raise RuntimeError(f"{' '.join(timed.words)} ended with {code}: {said}")
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=1000)
    options = parser.parse_args()
    measured: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, options.images)
        all_ = commands(folder, options.images)
        for _ in range(options.rounds):
            for timed in all_:
                measured.setdefault(timed.name, []).append(cpu_seconds(timed))
    rows: list[dict[str, Any]] = [
        {
            "name": timed.name,
            "aim_cpu_seconds": timed.aim,
            "cpu_seconds": statistics.median(measured[timed.name]),
            "rounds": measured[timed.name],
        }
        for timed in all_
    ]
    result = {
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "versions": {name: version(name) for name in ("torch", "timm", "torchvision", "ray", "mlflow")},
        "commit": git_commit(),
        "load_average": os.getloadavg()[0],
        "commands": rows,
    }
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    table = Table(title=f"CPU seconds, median of {options.rounds}")
    for title in ("command", "aim", "CPU seconds"):
        table.add_column(title, justify="left" if title == "command" else "right")
    for row in rows:
        aim = row["aim_cpu_seconds"]
        table.add_row(row["name"], "" if aim is None else f"≤ {aim:g}", f"{row['cpu_seconds']:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
