"""``siclip-platform data push``: upload a finished dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from siclip_platform.cli.data.group import app


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="Folder of a finished dataset.")],
    dest: Annotated[str, typer.Argument(help="Path or URI to upload to, for example s3://bucket/cc12m.")],
    read_back: Annotated[bool, typer.Option(help="Read the uploaded files and compare checksums.")] = True,
) -> None:
    """Upload a dataset with its captions and embeddings. A stopped upload resumes when it is repeated."""
    from siclip_platform.datasets.tools.push import push_dataset
    from siclip_platform.datasets.tools.verify import verify_dataset
    from siclip_platform.display import Display

    display = Display()
    with display.live():
        with display.task("upload") as task:
            pushed = push_dataset(folder, dest, task.progress)
        damage = []
        if read_back:
            with display.task("read back") as task:
                damage = verify_dataset(pushed.dest, task.progress)
    for file in damage:
        display.say(f"damaged: {file.problem}")
    if damage:
        raise typer.Exit(1)
    display.say(f"{pushed.dest}: {pushed.sent} of {pushed.files} files sent, {pushed.bytes:,} bytes in total")
