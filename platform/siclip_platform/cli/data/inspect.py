"""``siclip-platform data inspect``: statistics of a dataset, and a contact sheet."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from siclip_platform.cli.data.group import app

if TYPE_CHECKING:
    from rich.table import Table

    from siclip_platform.datasets.tools.inspect import SplitStatistics


@app.command()
def inspect(
    folder: Annotated[str, typer.Argument(help="Folder or URI of a dataset.")],
    sheet: Annotated[Path | None, typer.Option(help="Write images with their captions as one HTML file.")] = None,
    images: Annotated[int, typer.Option(min=1, help="Number of images on the sheet.")] = 48,
    split: Annotated[
        str | None, typer.Option(help="Split of the sheet, of --captions and --negatives; default: the first.")
    ] = None,
    captions: Annotated[str | None, typer.Option(help="A caption set beside the dataset to diagnose.")] = None,
    negatives: Annotated[str | None, typer.Option(help="False captions beside the dataset to show.")] = None,
    teacher: Annotated[
        str | None, typer.Option(help="For cosines of --captions: a checkpoint or open_clip:NAME:TAG.")
    ] = None,
) -> None:
    """Show rows, bytes, caption lengths, sources and rejected rows; with --sheet also a contact sheet.

    With --captions also what a captioner wrote, beside the dataset's own captions. With --negatives also how many
    false captions of each kind there are, with examples; the sheet shows them below the true ones.
    """
    from siclip.errors import UserError
    from siclip_platform.cli.data.diagnosis import diagnose
    from siclip_platform.datasets.manifest import open_dataset
    from siclip_platform.datasets.sidecar import open_sidecar
    from siclip_platform.datasets.tools.contact_sheet import write_contact_sheet
    from siclip_platform.datasets.tools.false_captions import describe_negatives
    from siclip_platform.datasets.tools.inspect import ledger_counts, sample_rows, summarize_split
    from siclip_platform.display import Display, printable

    display = Display()
    dataset = open_dataset(folder)
    display.say(f"{dataset.manifest.name}, version {dataset.manifest.version}; manifest {dataset.hash}")
    for name in dataset.split_names:
        display.table(_table(name, summarize_split(dataset, name)))
    rejected = ledger_counts(dataset.folder)
    if rejected:
        display.say(f"rejected: {sum(rejected.values()):,} rows")
    for reason, count in rejected.items():
        display.say(f"  {printable(reason)}: {count:,}")
    if teacher and not captions:
        raise UserError("--teacher measures captions: name their set with --captions")
    chosen, beside, lines = split or next(iter(dataset.split_names), "train"), None, []
    if captions:
        beside = open_sidecar(dataset, "captions", captions)
        lines = diagnose(dataset, beside, chosen, teacher)
        for line in lines:
            display.say(printable(line))
    false = open_sidecar(dataset, "negatives", negatives) if negatives else None
    if false is not None:
        lines += (found := describe_negatives(dataset, false, chosen))
        for line in found:
            display.say(printable(line))
    if sheet:
        rows = list(sample_rows(dataset, chosen, images, beside, false))
        note = f"{len(rows)} of {dataset.rows(chosen):,} rows of {chosen}, evenly spread; manifest {dataset.hash}"
        note = "\n".join([note, *lines])
        write_contact_sheet(sheet, dataset.manifest.name, note, rows)
        display.say(str(sheet))


def _table(split: str, summary: SplitStatistics) -> Table:
    from rich.table import Table

    from siclip_platform.display import printable

    each = f", {summary.bytes / summary.rows:,.0f} per row" if summary.rows else ""
    title = f"{split}: {summary.rows:,} rows in {summary.shards:,} shards, {summary.bytes:,} bytes{each}"
    table = Table("", "min", "median", "mean", "95 %", "max", title=title, title_justify="left")
    for name, spread in summary.spreads.items():
        values = (spread.low, spread.median, spread.mean, spread.p95, spread.high)
        table.add_row(name, *(f"{value:,.1f}".removesuffix(".0") for value in values))
    sources = "; ".join(f"{source} {count:,}" for source, count in summary.sources.items())
    table.caption = f"{summary.captions:,} captions: {printable(sources)}"
    return table
