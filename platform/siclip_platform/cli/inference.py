"""``siclip-platform embed`` and ``search``."""

from __future__ import annotations

from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from siclip.errors import UserError


class KindChoice(StrEnum):
    """What to embed."""

    image = "image"
    text = "text"


def embed(
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint that training wrote, a file or a URI.")],
    source: Annotated[
        Path, typer.Argument(help="A folder of images, Parquet, or a .txt file with one text per line.")
    ],
    out: Annotated[Path, typer.Argument(help="A new folder for the index.")],
    kind: Annotated[KindChoice | None, typer.Option(help="What to embed if Parquet has both.")] = None,
    column: Annotated[str | None, typer.Option(help="The Parquet column with images or texts.")] = None,
    actors: Annotated[int, typer.Option(min=1, help="Copies of the model that work at a time.")] = 1,
    address: Annotated[
        str | None, typer.Option(help="A Ray cluster; default: start one if there are several actors.")
    ] = None,
    verbose: Annotated[bool, typer.Option(help="Show Ray's output.")] = False,
) -> None:
    """Embed images or texts with a model, into Parquet for `search` and other tools."""
    from siclip_platform.cluster.connect import Needs, names_cluster, ray_cluster
    from siclip_platform.display import Display
    from siclip_platform.inference.embed import embed as run

    display = Display()
    # One copy of the model has nothing to share with others, and Ray takes longer to start than most sources.
    here = actors == 1 and not names_cluster(address)
    cluster = nullcontext() if here else ray_cluster(Needs(concurrent=actors, worker_cpus=1), address, verbose)
    with cluster, display.live(), display.task("embedding") as task:
        index = run(
            checkpoint,
            source,
            out,
            kind=kind.value if kind else None,
            column=column,
            actors=actors,
            here=here,
            progress=task.progress,
        )
    display.say(f"{out}: {index.rows:,} {index.kind} embeddings of {index.embed_dim} numbers")
    if index.rejected:
        display.say(f"{index.rejected:,} could not be read: {out / 'rejected.parquet'} lists the reasons")


def search(
    index: Annotated[Path, typer.Argument(help="An index that `embed` wrote.")],
    query: Annotated[str, typer.Argument(help="A text, or the path of an image.")],
    checkpoint: Annotated[str | None, typer.Option(help="The model, if it was moved.")] = None,
    count: Annotated[int, typer.Option(min=1, help="How many rows to find.")] = 12,
    sheet: Annotated[Path | None, typer.Option(help="Also write a contact sheet, an HTML file.")] = None,
) -> None:
    """Find the rows that are nearest to a text or an image."""
    from siclip_platform.display import echo, printable
    from siclip_platform.inference.encoder import Encoder
    from siclip_platform.inference.index import open_index
    from siclip_platform.inference.inputs import IMAGE_SUFFIXES
    from siclip_platform.inference.sheet import write_sheet

    opened = open_index(index)
    path = Path(query)
    image = None
    if path.suffix.lower() in IMAGE_SUFFIXES:
        if not path.is_file():
            raise UserError(f"the image {path} does not exist: name an image file, or search with a text")
        image = path.read_bytes()
    model = checkpoint or opened.description.checkpoint
    encoder = Encoder.load(model)
    if encoder.weights != opened.description.weights:
        raise UserError(f"{model} is not the model of {index}: name that one with --checkpoint, or embed again")
    embedding = encoder.images([encoder.pixels(image, query)]) if image else encoder.texts([query])
    hits = opened.nearest(embedding[0], count)
    for hit in hits:
        echo(f"{hit.similarity:.4f}  {printable(hit.id)}")
    if sheet:
        write_sheet(sheet, query, hits, image, with_images=opened.description.kind == "image")
        echo(str(sheet))
