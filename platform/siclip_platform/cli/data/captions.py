"""``siclip-platform data captions``: captions in files → a caption set beside a dataset."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from siclip_platform.cli.data.group import app


class KeyChoice(StrEnum):
    """Values of ``--key``."""

    id = "id"
    url = "url"
    sha256 = "sha256"


@app.command()
def captions(
    dataset: Annotated[Path, typer.Argument(help="Folder of the dataset; its own files are not changed.")],
    name: Annotated[str, typer.Option(help="Name of the caption set; written to DATASET/captions/NAME.")],
    source: Annotated[
        list[str],
        typer.Option("--from", help="CSV, TSV, JSON lines or Parquet: a file, folder, URI or pattern; repeatable."),
    ],
    column: Annotated[list[str], typer.Option(help="Column with captions, texts or lists of them; repeatable.")],
    key: Annotated[KeyChoice, typer.Option(help="What identifies an image, in the dataset and in the files.")],
    key_column: Annotated[str | None, typer.Option(help="Column with the key; default: named as --key.")] = None,
    model: Annotated[str | None, typer.Option(help="Who wrote the captions; default: the column's name.")] = None,
    split: Annotated[list[str] | None, typer.Option(help="Split to match; repeatable; default: all.")] = None,
) -> None:
    """Write captions that others have generated beside a dataset, matched by a key. Images without a match keep their
    own captions. A stopped command resumes when it is repeated."""
    from siclip_platform.datasets.importing.given.build import captions_from_files, expand_files
    from siclip_platform.datasets.importing.given.rows import CaptionColumns
    from siclip_platform.display import Display

    wanted = CaptionColumns(key=key.value, key_column=key_column or key.value, columns=tuple(column), model=model)
    files = expand_files(source)
    display = Display()
    with display.live(), display.task("captions") as task:
        built = captions_from_files(dataset, name, files, wanted, splits=split or (), progress=task.progress)
    counts = built.counts
    display.say(
        f"{counts['read']:,} rows read: {counts['matched']:,} matched, {counts['foreign']:,} of other images, "
        f"{counts['bad']:,} without key or caption; {counts['repeated']:,} were further rows of an image"
    )
    display.say(
        f"{built.sidecar.folder}: {counts['captions']:,} captions of {counts['with']:,} images; "
        f"{counts['without']:,} images keep their own alone; manifest {built.sidecar.hash}"
    )
    display.say(f"to train on them: --set data.captions=[{name}]")
