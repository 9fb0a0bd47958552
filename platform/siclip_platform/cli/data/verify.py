"""``siclip-platform data verify``: compare a dataset with its manifest."""

from __future__ import annotations

from typing import Annotated

import typer

from siclip_platform.cli.data.group import app


@app.command()
def verify(folder: Annotated[str, typer.Argument(help="Folder or URI of a dataset.")]) -> None:
    """Read all files of a dataset and compare their SHA-256 with the manifest; exit code 1 if one differs."""
    from siclip_platform.datasets.manifest import open_dataset
    from siclip_platform.datasets.tools.verify import verify_dataset
    from siclip_platform.display import Display

    display = Display()
    with display.live(), display.task("verify") as task:
        damage = verify_dataset(folder, task.progress)
    for file in damage:
        display.say(f"damaged: {file.problem}")
    if damage:
        raise typer.Exit(1)
    dataset = open_dataset(folder)
    rows = sum(dataset.rows(split) for split in dataset.split_names)
    display.say(f"{dataset.folder}: {rows:,} rows match the manifest {dataset.hash}")
