"""``siclip-platform data import``: foreign image–caption pairs as a dataset."""

from __future__ import annotations

import shlex
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from siclip.errors import UserError
from siclip_platform.cli.data.group import app
from siclip_platform.cli.data.import_options import ImportOptions, separate, show_imported, takes_import_options


@app.command("import")
@takes_import_options
def import_(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Files, folders or patterns, by path or URI such as s3://bucket/cc12m.", metavar="SOURCE"
        ),
    ],
    dest: Annotated[Path, typer.Argument(help="Folder of the dataset; an interrupted import resumes.")],
    options: ImportOptions,
    name: Annotated[str | None, typer.Option(help="Name of the dataset; default: the source's.")] = None,
    address: Annotated[
        str | None, typer.Option(help="Address of a Ray cluster; default: start one for a large source.")
    ] = None,
    verbose: Annotated[bool, typer.Option(help="Show Ray's output.")] = False,
) -> None:
    """Import WebDataset shards (of img2dataset, Hugging Face or others), Parquet, lists of paths and captions, image
    folders, or saved Hugging Face datasets. DEST/ledger.parquet lists rejected rows with their reasons."""
    from siclip_platform.cluster.connect import Needs, names_cluster, ray_cluster
    from siclip_platform.datasets.derived.stage import Pool
    from siclip_platform.datasets.importing.ingest import import_dataset
    from siclip_platform.datasets.importing.small import is_small
    from siclip_platform.display import Display

    words, options = separate([*sources, str(dest)], options)
    if len(words) < 2:
        raise UserError(
            "name the folder of the dataset after the sources: siclip-platform data import SOURCE... DEST"
        )
    # Before Ray starts: problems of the source show within a second.
    found, config = options.find(words[:-1])
    display = Display()
    here = is_small(found) and not names_cluster(address)
    cluster = nullcontext() if here else ray_cluster(Needs(concurrent=0, worker_cpus=0), address, verbose)
    with cluster, display.live(), display.task("import") as task:
        done = import_dataset(
            found,
            Path(words[-1]),
            config,
            name=name,
            max_bad_share=options.max_bad_share,
            pool=Pool(here=here),
            progress=task.progress,
        )
    show_imported(display, done, config)
    display.say(f"next: siclip-platform train --recipe NAME-OR-FILE --data {shlex.quote(words[-1])}")
