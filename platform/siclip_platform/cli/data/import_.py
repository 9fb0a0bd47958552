"""``siclip-platform data import``: foreign image–caption pairs as a dataset."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from siclip_platform.cli.data.group import app


class LayoutChoice(StrEnum):
    """Values of ``--layout``."""

    webdataset = "webdataset"
    parquet = "parquet"
    list = "list"
    folder = "folder"
    arrow = "arrow"


class ShareChoice(StrEnum):
    """Values of ``--share-by``."""

    image = "image"
    caption = "caption"


@app.command("import")
def import_(
    source: Annotated[str, typer.Argument(help="A file or folder, by path or URI such as s3://bucket/cc12m.")],
    dest: Annotated[Path, typer.Argument(help="Folder of the dataset; an interrupted import resumes.")],
    layout: Annotated[LayoutChoice | None, typer.Option(help="Default: by the names of the files.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the dataset; default: the source's.")] = None,
    split: Annotated[str, typer.Option(help="Split of rows whose source names none.")] = "train",
    keep_splits: Annotated[
        bool, typer.Option(help="Keep the splits that files, folders and the column `split` name.")
    ] = True,
    validation_share: Annotated[
        float, typer.Option(help="Share of the samples that go to validation, drawn by image.")
    ] = 0.0,
    share_by: Annotated[
        ShareChoice, typer.Option(help="Draw by image, or keep samples with a common caption together.")
    ] = ShareChoice.image,
    size: Annotated[int, typer.Option(min=16, help="Maximum shorter side of a stored image.")] = 256,
    quality: Annotated[int, typer.Option(min=1, max=100, help="JPEG quality.")] = 90,
    min_side: Annotated[int, typer.Option(min=1, help="Images with a shorter side are rejected.")] = 32,
    max_pixels: Annotated[int, typer.Option(min=1, help="Images with more are not decoded.")] = 89_478_485,
    drop_duplicates: Annotated[bool, typer.Option(help="Keep only the first of images with the same bytes.")] = False,
    near_duplicates: Annotated[
        int | None,
        typer.Option(
            min=0, max=8, help="Keep only the first of images whose pHash differs in at most this many bits."
        ),
    ] = None,
    max_bad_share: Annotated[float, typer.Option(min=0, max=1, help="Stop above this share of bad rows.")] = 0.01,
    image_column: Annotated[str | None, typer.Option(help="Column with the bytes or the path of the image.")] = None,
    caption_column: Annotated[list[str] | None, typer.Option(help="Column with captions; repeatable.")] = None,
    id_column: Annotated[str | None, typer.Option(help="Column with the id.")] = None,
    category_column: Annotated[str | None, typer.Option(help="Column with the category.")] = None,
    split_column: Annotated[str | None, typer.Option(help="Column with the split; default: `split`.")] = None,
    allow_outside: Annotated[
        list[str] | None, typer.Option(help="Folder outside the source that rows may name files of; repeatable.")
    ] = None,
    allow_download: Annotated[
        list[str] | None, typer.Option(help="Host that rows may name addresses of; repeatable.")
    ] = None,
    prefix_ids: Annotated[bool, typer.Option(help="Prefix ids with the file's name, if files repeat ids.")] = False,
    shard_rows: Annotated[int, typer.Option(min=1, help="Maximum rows per shard.")] = 10_000,
    row_group_rows: Annotated[int, typer.Option(min=1, help="Rows per row group.")] = 250,
    address: Annotated[str | None, typer.Option(help="Address of a Ray cluster; default: start one.")] = None,
    verbose: Annotated[bool, typer.Option(help="Show Ray's output.")] = False,
) -> None:
    """Import WebDataset shards (of img2dataset or others), Parquet, lists of paths and captions, image folders, or
    saved Hugging Face datasets. DEST/ledger.parquet lists rejected rows with their reasons."""
    from siclip_platform.cluster.connect import Needs, ray_cluster
    from siclip_platform.datasets.importing.images import ImageRules
    from siclip_platform.datasets.importing.ingest import import_dataset
    from siclip_platform.datasets.importing.parts import ImportConfig
    from siclip_platform.datasets.importing.sources.access import Access
    from siclip_platform.datasets.importing.sources.columns import ColumnNames
    from siclip_platform.datasets.importing.sources.find import find_source
    from siclip_platform.display import Display, printable

    config = ImportConfig(
        split=split,
        validation_share=validation_share,
        share_by=share_by.value,
        prefix_ids=prefix_ids,
        images=ImageRules(size=size, quality=quality, min_side=min_side, max_pixels=max_pixels),
        drop_duplicates=drop_duplicates,
        near_duplicates=near_duplicates,
        shard_rows=shard_rows,
        row_group_rows=row_group_rows,
    )
    columns = ColumnNames(
        image=image_column,
        caption=tuple(caption_column or ()),
        id=id_column,
        category=category_column,
        split=split_column,
    )
    access = Access.allowing(allow_outside or [], allow_download or [])
    # Before Ray starts: problems of the source show within a second.
    found = find_source(
        source, layout.value if layout else None, columns, shard_rows, access=access, keep_splits=keep_splits
    )
    display = Display()
    cluster = ray_cluster(Needs(concurrent=0, worker_cpus=0), address, verbose)
    with cluster, display.live(), display.task("import") as task:
        done = import_dataset(found, dest, config, name=name, max_bad_share=max_bad_share, progress=task.progress)
    dataset = done.dataset
    rows = ", ".join(f"{dataset.rows(part):,} {part}" for part in dataset.split_names)
    display.say(
        f"{done.read:,} rows read, {sum(done.rejected.values()):,} of them in {dataset.folder / 'ledger.parquet'}"
    )
    if done.merged:
        display.say(f"{done.merged:,} rows are further captions of the image of another row")
    if validation_share and "validation" not in dataset.split_names:
        display.say(f"no sample was drawn for validation: raise --validation-share {validation_share:g}")
    for reason, count in done.rejected.items():
        display.say(f"  {printable(reason)}: {count:,}")
    display.say(f"{dataset.folder}: {rows or 'no rows'}; manifest {dataset.hash}")
