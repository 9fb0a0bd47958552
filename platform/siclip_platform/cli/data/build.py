"""``siclip-platform data build``: digit scenes."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from siclip_platform.cli.data.group import app


@app.command()
def build(
    folder: Annotated[Path, typer.Argument(help="Folder of the dataset; a finished one is reused.")],
    train_scenes: Annotated[int, typer.Option(min=1)] = 12_000,
    validation_scenes: Annotated[int, typer.Option(min=1)] = 500,
    test_scenes: Annotated[int, typer.Option(min=1)] = 1000,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    address: Annotated[str | None, typer.Option(help="Address of a Ray cluster; default: start one.")] = None,
    verbose: Annotated[bool, typer.Option(help="Show Ray's output.")] = False,
) -> None:
    """Build digit scenes: real handwritten digits in generated scenes with captions."""
    from siclip_platform.cluster.connect import Needs, ray_cluster
    from siclip_platform.datasets.digits.digits import DigitScenesConfig, build_digit_scenes
    from siclip_platform.display import Display

    config = DigitScenesConfig(
        train_scenes=train_scenes, validation_scenes=validation_scenes, test_scenes=test_scenes, seed=seed
    )
    display = Display()
    cluster = ray_cluster(Needs(concurrent=0, worker_cpus=0), address, verbose)
    with cluster, display.live(), display.task("digit scenes") as task:
        dataset = build_digit_scenes(folder, config, task.progress)
    rows = ", ".join(f"{dataset.rows(split):,} {split}" for split in dataset.split_names)
    display.say(f"{dataset.folder}: {rows}; manifest {dataset.hash}")
    display.say(f"next: siclip-platform train --recipe digits-teacher --data {shlex.quote(str(folder))}")
